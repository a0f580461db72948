//! `GET /resources`: which resources, and which page of them.

use axum::Json;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hwm_core::config::ResourceType;
use hwm_core::id::NodeId;
use hwm_core::lifecycle::Status;
use hwm_core::store::{Cursor, ListQuery, Position, SortBy, SortOrder};
use serde::{Deserialize, Serialize};

use super::ListRefused;
use crate::auth::Caller;
use crate::body::{Pagination, ResourceList, Statistics};
use crate::error::ApiError;
use crate::extract::{FromQuery, Query, QueryReader};

/// A page is no further away than this; beyond it there are cursors.
const LAST_PAGE: u64 = 1_000_000;
const LONGEST_SEARCH: usize = 200;

/// Which resources, and which page of them.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListParameters {
    /// Of this type; `container` is both container types.
    #[param(rename = "resourceType", inline)]
    types: Option<TypeFilter>,
    /// In this status.
    #[param(inline)]
    status: Option<Status>,
    /// On this node.
    #[param(rename = "nodeId", value_type = Option<String>, max_length = 253)]
    node: Option<NodeId>,
    /// With this text in name or description, letter case aside.
    #[param(max_length = 200)]
    search: Option<String>,
    /// From 1.
    #[param(minimum = 1, maximum = 1_000_000, default = 1)]
    page: Option<u64>,
    /// How many a page holds.
    #[param(minimum = 1, maximum = 200, default = 10)]
    limit: Option<u32>,
    /// By what they are sorted; createdAt when absent.
    #[param(rename = "sortBy", inline)]
    sort_by: Option<SortBy>,
    /// Which way; desc when absent.
    #[param(rename = "sortOrder", inline)]
    order: Option<SortOrder>,
    /// `nextCursor` of the page before, in place of `page`; sorting must be the same.
    #[param(value_type = Option<String>)]
    cursor: Option<PageCursor>,
    /// Deleted ones too; needs an owner role.
    #[param(rename = "includeDeleted")]
    include_deleted: Option<bool>,
}

/// A resource type, or both container types together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TypeFilter {
    /// `virtual-machine`
    VirtualMachine,
    /// `application-container`
    ApplicationContainer,
    /// `inference-container`
    InferenceContainer,
    /// Both kinds of container.
    Container,
}

impl TypeFilter {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "virtual-machine" => Some(Self::VirtualMachine),
            "application-container" => Some(Self::ApplicationContainer),
            "inference-container" => Some(Self::InferenceContainer),
            "container" => Some(Self::Container),
            _ => None,
        }
    }

    fn types(self) -> Vec<ResourceType> {
        match self {
            Self::VirtualMachine => vec![ResourceType::VirtualMachine],
            Self::ApplicationContainer => vec![ResourceType::ApplicationContainer],
            Self::InferenceContainer => vec![ResourceType::InferenceContainer],
            Self::Container => ResourceType::ALL
                .into_iter()
                .filter(|t| t.is_container())
                .collect(),
        }
    }
}

/// A cursor and the sorting that it is for, as one opaque text.
#[derive(Serialize, Deserialize)]
struct PageCursor {
    #[serde(rename = "c")]
    cursor: Cursor,
    #[serde(rename = "s")]
    sort_by: SortBy,
    #[serde(rename = "o")]
    order: SortOrder,
}

impl PageCursor {
    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    fn decode(text: &str) -> Option<Self> {
        let cursor: Self = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        cursor.sort_by.fits(&cursor.cursor).then_some(cursor)
    }
}

impl FromQuery for ListParameters {
    fn from_query(query: &mut QueryReader) -> Self {
        let parameters = Self {
            types: query.parsed(
                "resourceType",
                "virtual-machine, application-container, inference-container or container",
                TypeFilter::parse,
            ),
            status: query.parsed(
                "status",
                "queued, deploying, running, stopping, stopped, failed or error",
                Status::parse,
            ),
            node: query.parsed("nodeId", "1 to 253 characters", |text| {
                (1..=253).contains(&text.chars().count()).then_some(text.into())
            }),
            search: query.parsed("search", "at most 200 characters without NUL", |text| {
                (text.chars().count() <= LONGEST_SEARCH && !text.contains('\0')).then(|| text.to_owned())
            }),
            page: query.integer("page", 1, LAST_PAGE),
            limit: query
                .integer("limit", 1, 200)
                .and_then(|limit| u32::try_from(limit).ok()),
            sort_by: query.parsed(
                "sortBy",
                "createdAt, updatedAt, name or status",
                |text| match text {
                    "createdAt" => Some(SortBy::CreatedAt),
                    "updatedAt" => Some(SortBy::UpdatedAt),
                    "name" => Some(SortBy::Name),
                    "status" => Some(SortBy::Status),
                    _ => None,
                },
            ),
            order: query.parsed("sortOrder", "asc or desc", |text| match text {
                "asc" => Some(SortOrder::Asc),
                "desc" => Some(SortOrder::Desc),
                _ => None,
            }),
            cursor: query.parsed("cursor", "the nextCursor of an earlier page", PageCursor::decode),
            include_deleted: query.flag("includeDeleted"),
        };
        if let Some(cursor) = &parameters.cursor {
            if parameters.page.is_some_and(|page| page > 1) {
                query.refuse("cursor", "cannot be combined with page");
            }
            if cursor.sort_by != parameters.sort_by() || cursor.order != parameters.order() {
                query.refuse("cursor", "is for another sorting: keep sortBy and sortOrder");
            }
        }
        parameters
    }
}

impl ListParameters {
    fn sort_by(&self) -> SortBy {
        self.sort_by.unwrap_or_default()
    }

    fn order(&self) -> SortOrder {
        self.order.unwrap_or_default()
    }

    fn page(&self) -> u64 {
        self.page.unwrap_or(1)
    }

    fn limit(&self) -> u32 {
        self.limit.unwrap_or(10)
    }

    fn query(self) -> ListQuery {
        let before = (self.page() - 1) * u64::from(self.limit());
        ListQuery {
            types: self.types.map(TypeFilter::types).unwrap_or_default(),
            status: self.status,
            sort_by: self.sort_by(),
            order: self.order(),
            limit: self.limit(),
            include_deleted: self.include_deleted.unwrap_or(false),
            node: self.node,
            search: self.search.filter(|text| !text.is_empty()),
            position: match self.cursor {
                Some(cursor) => Position::After(cursor.cursor),
                None => Position::Offset(before),
            },
            ..ListQuery::default()
        }
    }
}

/// Lists resources. Statistics count all that the filters select, not this page alone.
#[utoipa::path(
    get,
    path = "/resources",
    tag = "resources",
    operation_id = "listResources",
    params(ListParameters),
    responses((status = 200, description = "A page of resources", body = ResourceList), ListRefused)
)]
pub(crate) async fn list(
    caller: Caller,
    Query(parameters): Query<ListParameters>,
) -> Result<Json<ResourceList>, ApiError> {
    let (page, limit) = (parameters.page(), parameters.limit());
    let (sort_by, order) = (parameters.sort_by(), parameters.order());
    let found = caller.scoped.list(parameters.query()).await?;
    let next = found.next.map(|cursor| PageCursor {
        cursor,
        sort_by,
        order,
    });
    Ok(Json(ResourceList {
        data: found.resources,
        pagination: Pagination {
            next_cursor: next.map(|cursor| cursor.encode()),
            ..Pagination::new(page, limit, found.total)
        },
        statistics: Statistics::new(found.total, &found.counts),
    }))
}

#[cfg(test)]
mod tests {
    use hwm_core::id::ResourceId;

    use super::*;

    fn read(query: &str) -> (ListParameters, Vec<String>) {
        let mut reader = QueryReader::new(query);
        let parameters = ListParameters::from_query(&mut reader);
        let violations = reader.finish().iter().map(ToString::to_string).collect();
        (parameters, violations)
    }

    #[test]
    fn the_defaults_are_the_contracts() {
        let (parameters, violations) = read("");
        assert!(violations.is_empty());
        let query = parameters.query();
        assert_eq!((query.limit, query.position), (10, Position::Offset(0)));
        assert_eq!((query.sort_by, query.order), (SortBy::CreatedAt, SortOrder::Desc));
    }

    #[test]
    fn container_means_both_kinds() {
        let (parameters, _) = read("resourceType=container&page=3&limit=5");
        let query = parameters.query();
        assert_eq!(query.types.len(), 2);
        assert_eq!(query.position, Position::Offset(10));
    }

    #[test]
    fn a_cursor_reads_back_and_is_for_its_sorting_alone() {
        let cursor = PageCursor {
            cursor: Cursor {
                key: "näme".into(),
                id: ResourceId::from_u128(7),
            },
            sort_by: SortBy::Name,
            order: SortOrder::Asc,
        }
        .encode();
        let (parameters, violations) = read(&format!("sortBy=name&sortOrder=asc&cursor={cursor}"));
        assert!(violations.is_empty(), "{violations:?}");
        assert!(matches!(parameters.query().position, Position::After(c) if c.key == "näme"));
        let (_, violations) = read(&format!("page=2&cursor={cursor}"));
        assert_eq!(violations.len(), 2, "{violations:?}");
        let of_no_list = PageCursor {
            cursor: Cursor {
                key: "näme".into(),
                id: ResourceId::from_u128(7),
            },
            sort_by: SortBy::CreatedAt,
            order: SortOrder::Desc,
        }
        .encode();
        for wrong in ["nonsense", &of_no_list] {
            let (_, violations) = read(&format!("cursor={wrong}"));
            assert_eq!(violations, ["cursor: must be the nextCursor of an earlier page"]);
        }
    }
}
