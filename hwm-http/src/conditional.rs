//! ETag and If-Match: a change is made to the revision that its sender saw, or not at all.

use axum::http::{HeaderMap, HeaderValue, header};
use hwm_core::id::ResourceId;

use crate::auth::Caller;
use crate::error::ApiError;

/// The entity tag of a revision.
pub(crate) fn etag(revision: u64) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{revision}\"")).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

/// What If-Match asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum IfMatch {
    /// Nothing: there is no such header.
    Absent,
    /// `*`: any revision will do.
    Any,
    /// One of these; empty where none of the tags can be one of ours (weak ones never match).
    OneOf(Vec<u64>),
}

impl IfMatch {
    pub(crate) fn read(headers: &HeaderMap) -> Result<Self, ApiError> {
        let values: Vec<&HeaderValue> = headers.get_all(header::IF_MATCH).iter().collect();
        if values.is_empty() {
            return Ok(Self::Absent);
        }
        let malformed = || ApiError::malformed("If-Match must be * or a list of entity tags in quotes");
        let mut revisions = Vec::new();
        for value in values {
            let text = value.to_str().map_err(|_| malformed())?.trim();
            if text == "*" {
                return Ok(Self::Any);
            }
            for tag in tags(text).ok_or_else(malformed)? {
                match tag {
                    Tag::Strong(text) => revisions.extend(revision(text)),
                    Tag::Weak(_) => {}
                }
            }
        }
        Ok(Self::OneOf(revisions))
    }

    /// The revision that the resource must have; an error when it has none of them.
    pub(crate) async fn revision(&self, caller: &Caller, id: ResourceId) -> Result<Option<u64>, ApiError> {
        match self {
            Self::Absent | Self::Any => Ok(None),
            Self::OneOf(revisions) => match revisions.as_slice() {
                [one] => Ok(Some(*one)),
                several => {
                    let now = caller.scoped.get(id, false).await?.revision;
                    if several.contains(&now) {
                        Ok(Some(now))
                    } else {
                        Err(hwm_core::Error::PreconditionFailed { resource: id }.into())
                    }
                }
            },
        }
    }
}

/// Whether If-None-Match names this revision, so that there is nothing new to send.
pub(crate) fn none_match(headers: &HeaderMap, revision_now: u64) -> bool {
    headers.get_all(header::IF_NONE_MATCH).iter().any(|value| {
        let Ok(text) = value.to_str() else { return false };
        if text.trim() == "*" {
            return true;
        }
        tags(text).is_some_and(|tags| {
            tags.iter().any(|tag| match tag {
                Tag::Strong(text) | Tag::Weak(text) => revision(text) == Some(revision_now),
            })
        })
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Tag<'a> {
    Strong(&'a str),
    Weak(&'a str),
}

/// The tags of a list; none where it is no list of tags.
fn tags(text: &str) -> Option<Vec<Tag<'_>>> {
    let mut tags = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (weak, quoted) = match rest.strip_prefix("W/") {
            Some(after) => (true, after),
            None => (false, rest),
        };
        let (tag, after) = quoted.strip_prefix('"')?.split_once('"')?;
        tags.push(if weak { Tag::Weak(tag) } else { Tag::Strong(tag) });
        rest = after.trim_start();
        if !rest.is_empty() {
            rest = rest.strip_prefix(',')?.trim_start();
        }
    }
    Some(tags)
}

/// Only the spelling that [`etag`] writes.
fn revision(tag: &str) -> Option<u64> {
    tag.parse::<u64>().ok().filter(|n| n.to_string() == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn if_match(value: &str) -> Result<IfMatch, ()> {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_MATCH, value.parse().unwrap());
        IfMatch::read(&headers).map_err(|_| ())
    }

    #[test]
    fn a_tag_reads_back() {
        let tag = etag(42);
        assert_eq!(if_match(tag.to_str().unwrap()), Ok(IfMatch::OneOf(vec![42])));
    }

    #[test]
    fn lists_and_stars_are_understood() {
        assert_eq!(if_match("*"), Ok(IfMatch::Any));
        assert_eq!(if_match("\"1\", \"2\" ,\"x,y\""), Ok(IfMatch::OneOf(vec![1, 2])));
        assert_eq!(IfMatch::read(&HeaderMap::new()).ok(), Some(IfMatch::Absent));
    }

    #[test]
    fn weak_and_foreign_tags_never_match() {
        for tag in ["W/\"1\"", "\"abc\"", "\"01\"", "\"+1\"", "\"\""] {
            assert_eq!(if_match(tag), Ok(IfMatch::OneOf(vec![])), "{tag}");
        }
    }

    #[test]
    fn what_is_no_tag_is_refused() {
        for text in ["1", "\"1", "\"1\" \"2\"", "w/\"1\"", "\"1\";"] {
            assert_eq!(if_match(text), Err(()), "{text}");
        }
    }

    #[test]
    fn if_none_match_compares_weakly() {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, "W/\"7\", \"8\"".parse().unwrap());
        assert!(none_match(&headers, 7) && none_match(&headers, 8) && !none_match(&headers, 9));
    }
}
