//! Who may do what: principals, roles and scopes. Pure.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Whom a resource belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Owner {
    /// The organization.
    pub org_id: String,
    /// The group inside it.
    pub group_id: String,
    /// The user.
    pub user_id: String,
    /// The agent that acts for the user.
    pub agent_id: String,
    /// The application.
    pub app_id: String,
}

/// How far a role reaches, widest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Everything.
    Universe,
    /// The same organization.
    Organization,
    /// The same organization and group.
    Group,
    /// The same organization and group, and the same user or agent.
    Member,
}

/// What a role may do in its scope, most first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// All.
    Owner,
    /// All but hard administration.
    Editor,
    /// Reads; no action, exec or console.
    Viewer,
}

/// A role, written `scope.kind`, for example `group.editor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Role {
    /// How far it reaches.
    pub scope: Scope,
    /// What it may do there.
    pub kind: Kind,
}

/// A text that is no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a role: expected universe, organization, group or member, a dot, and owner, editor or viewer")]
pub struct InvalidRole;

impl FromStr for Role {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, InvalidRole> {
        let (scope, kind) = text.split_once('.').ok_or(InvalidRole)?;
        let scope = match scope {
            "universe" => Scope::Universe,
            "organization" => Scope::Organization,
            "group" => Scope::Group,
            "member" => Scope::Member,
            _ => return Err(InvalidRole),
        };
        let kind = match kind {
            "owner" => Kind::Owner,
            "editor" => Kind::Editor,
            "viewer" => Kind::Viewer,
            _ => return Err(InvalidRole),
        };
        Ok(Self { scope, kind })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scope = match self.scope {
            Scope::Universe => "universe",
            Scope::Organization => "organization",
            Scope::Group => "group",
            Scope::Member => "member",
        };
        let kind = match self.kind {
            Kind::Owner => "owner",
            Kind::Editor => "editor",
            Kind::Viewer => "viewer",
        };
        write!(f, "{scope}.{kind}")
    }
}

/// What a caller wants to do; each needs a [`Kind`] at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permission {
    /// Look: lists, status, logs, metrics, events.
    Read,
    /// Create, change, act, exec, console.
    Write,
    /// Hard administration: soft-deleted records, recovering a quarantined card, adopting.
    Administer,
}

impl Permission {
    fn granted_by(self, kind: Kind) -> bool {
        match self {
            Self::Read => true,
            Self::Write => kind <= Kind::Editor,
            Self::Administer => kind == Kind::Owner,
        }
    }
}

/// A caller, already authenticated.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Principal {
    /// The user id that audit fields name; the token's subject.
    pub subject: String,
    /// For people to read.
    pub username: String,
    /// Where it belongs; what it creates belongs there too.
    pub owner: Owner,
    /// Any role that grants an action suffices.
    pub roles: Vec<Role>,
}

impl Principal {
    /// A caller that may do everything: for embedding services that do their own access control.
    pub fn admin(subject: impl Into<String>) -> Self {
        let subject = subject.into();
        Self {
            username: subject.clone(),
            owner: Owner {
                user_id: subject.clone(),
                ..Owner::default()
            },
            subject,
            roles: vec![Role {
                scope: Scope::Universe,
                kind: Kind::Owner,
            }],
        }
    }

    /// Whether it may do `permission` to what `owner` owns.
    pub fn may(&self, permission: Permission, owner: &Owner) -> bool {
        self.roles
            .iter()
            .any(|r| permission.granted_by(r.kind) && self.covers(r.scope, owner))
    }

    /// The widest view in which it has `permission`; none without such a role.
    pub fn visibility(&self, permission: Permission) -> Option<Visibility> {
        let widest = self
            .roles
            .iter()
            .filter(|r| permission.granted_by(r.kind))
            .map(|r| r.scope)
            .min()?;
        let Owner {
            org_id,
            group_id,
            user_id,
            agent_id,
            ..
        } = self.owner.clone();
        Some(match widest {
            Scope::Universe => Visibility::All,
            Scope::Organization => Visibility::Organization { org_id },
            Scope::Group => Visibility::Group { org_id, group_id },
            Scope::Member => Visibility::Member {
                org_id,
                group_id,
                user_id,
                agent_id,
            },
        })
    }

    fn covers(&self, scope: Scope, owner: &Owner) -> bool {
        let Owner {
            org_id,
            group_id,
            user_id,
            agent_id,
            ..
        } = self.owner.clone();
        match scope {
            Scope::Universe => Visibility::All,
            Scope::Organization => Visibility::Organization { org_id },
            Scope::Group => Visibility::Group { org_id, group_id },
            Scope::Member => Visibility::Member {
                org_id,
                group_id,
                user_id,
                agent_id,
            },
        }
        .includes(owner)
    }
}

/// The set of owners whose resources a caller sees. An empty id never matches: it is "none", not "the same".
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Visibility {
    /// Everything.
    All,
    /// One organization.
    Organization {
        /// The organization.
        org_id: String,
    },
    /// One group.
    Group {
        /// The organization.
        org_id: String,
        /// The group.
        group_id: String,
    },
    /// What belongs to a user or agent of a group.
    Member {
        /// The organization.
        org_id: String,
        /// The group.
        group_id: String,
        /// The user.
        user_id: String,
        /// The agent.
        agent_id: String,
    },
}

impl Visibility {
    /// Whether what `owner` owns is in the set.
    pub fn includes(&self, owner: &Owner) -> bool {
        fn same(a: &str, b: &str) -> bool {
            !a.is_empty() && a == b
        }
        match self {
            Self::All => true,
            Self::Organization { org_id } => same(org_id, &owner.org_id),
            Self::Group { org_id, group_id } => {
                same(org_id, &owner.org_id) && same(group_id, &owner.group_id)
            }
            Self::Member {
                org_id,
                group_id,
                user_id,
                agent_id,
            } => {
                same(org_id, &owner.org_id)
                    && same(group_id, &owner.group_id)
                    && (same(user_id, &owner.user_id) || same(agent_id, &owner.agent_id))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(ids: [&str; 4]) -> Owner {
        let [org, group, user, agent] = ids.map(str::to_owned);
        Owner {
            org_id: org,
            group_id: group,
            user_id: user,
            agent_id: agent,
            app_id: String::new(),
        }
    }

    fn principal(role: &str) -> Principal {
        Principal {
            owner: owner(["o", "g", "u", "a"]),
            roles: vec![role.parse().unwrap()],
            ..Principal::default()
        }
    }

    #[test]
    fn every_role_reads_back() {
        for scope in ["universe", "organization", "group", "member"] {
            for kind in ["owner", "editor", "viewer"] {
                let text = format!("{scope}.{kind}");
                assert_eq!(text.parse::<Role>().unwrap().to_string(), text);
            }
        }
        for text in [
            "",
            "universe",
            "universe.",
            ".owner",
            "Universe.owner",
            "universe.owner.x",
            "root.owner",
        ] {
            assert!(text.parse::<Role>().is_err(), "{text}");
        }
    }

    #[test]
    fn scopes_nest() {
        let table = [
            (["o", "g", "u", "x"], [true, true, true, true]),
            (["o", "g", "x", "a"], [true, true, true, true]),
            (["o", "g", "x", "x"], [true, true, true, false]),
            (["o", "x", "u", "a"], [true, true, false, false]),
            (["x", "g", "u", "a"], [true, false, false, false]),
        ];
        for (ids, seen) in table {
            for (scope, expected) in ["universe", "organization", "group", "member"]
                .into_iter()
                .zip(seen)
            {
                let caller = principal(&format!("{scope}.viewer"));
                assert_eq!(
                    caller.may(Permission::Read, &owner(ids)),
                    expected,
                    "{scope} {ids:?}"
                );
                assert_eq!(
                    caller.visibility(Permission::Read).unwrap().includes(&owner(ids)),
                    expected
                );
            }
        }
    }

    #[test]
    fn an_empty_id_is_nobodys() {
        let mut caller = principal("organization.owner");
        caller.owner = Owner::default();
        assert!(!caller.may(Permission::Read, &Owner::default()));
    }

    #[test]
    fn kinds_are_ordered() {
        let mine = owner(["o", "g", "u", "a"]);
        for (kind, write, administer) in [
            ("viewer", false, false),
            ("editor", true, false),
            ("owner", true, true),
        ] {
            let caller = principal(&format!("group.{kind}"));
            assert!(caller.may(Permission::Read, &mine));
            assert_eq!(caller.may(Permission::Write, &mine), write);
            assert_eq!(caller.may(Permission::Administer, &mine), administer);
        }
    }
}
