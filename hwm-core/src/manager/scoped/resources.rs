//! Resources: create, look, change, act.

use serde_json::Value;

use super::Scoped;
use crate::access::Permission;
use crate::error::Error;
use crate::id::ResourceId;
use crate::lifecycle::Action;
use crate::manager::Result;
use crate::manager::api::{Accepted, PlanReport, RequestOptions, ResourcePage, Versioned};
use crate::operation::Arguments;
use crate::resource::Resource;
use crate::store::ListQuery;
use crate::validate::CreateRequest;

impl Scoped {
    /// Accepts a new resource, which then deploys by itself unless `auto_start` is off.
    ///
    /// # Errors
    /// [`Error::Validation`] for what only the node can find, [`Error::Conflict`] for what others hold,
    /// [`Error::Unsupported`], [`Error::BackendUnavailable`]. Nothing is made or held then.
    pub async fn create(&self, request: CreateRequest, options: RequestOptions) -> Result<Accepted> {
        self.may_create()?;
        self.accepting()?;
        self.core.create(request, self.asking(&options)).await
    }

    /// What a create would do; reserves nothing.
    ///
    /// # Errors
    /// As [`Scoped::create`].
    pub async fn plan(&self, request: CreateRequest) -> Result<PlanReport> {
        self.may_create()?;
        self.core.plan(request, &self.principal).await
    }

    /// One resource. A deleted one is there only for an owner role that asks for it.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn get(&self, id: ResourceId, include_deleted: bool) -> Result<Versioned> {
        let record = if include_deleted {
            let record = self
                .core
                .store
                .record(id)
                .await?
                .ok_or_else(|| Error::resource_not_found(id))?;
            self.require(&record, Permission::Administer, "seeing deleted resources")?;
            record
        } else {
            self.visible(id).await?
        };
        Ok(Versioned {
            resource: Resource::from(&record),
            revision: record.revision,
        })
    }

    /// A page of resources. The query's visibility is replaced by the caller's own.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for a caller without any role, or who asks for deleted ones without an owner role.
    pub async fn list(&self, mut query: ListQuery) -> Result<ResourcePage> {
        let permission = if query.include_deleted {
            Permission::Administer
        } else {
            Permission::Read
        };
        query.visibility = self.view(permission, "listing these resources")?;
        let page = self.core.store.list(query).await?;
        Ok(ResourcePage {
            resources: page.records.iter().map(Resource::from).collect(),
            total: page.total,
            counts: page.counts,
            next: page.next,
        })
    }

    /// Applies a merge patch (RFC 7396) over name, description, metadata and config; `status` asks for
    /// "running" or "stopped". A config change that cannot be made live waits for the next start.
    ///
    /// # Errors
    /// As [`Scoped::create`], and [`Error::InvalidState`], [`Error::PreconditionFailed`].
    pub async fn update(&self, id: ResourceId, patch: Value, options: RequestOptions) -> Result<Accepted> {
        self.writable(id, "changing it").await?;
        self.accepting()?;
        self.core.update(id, &patch, self.asking(&options)).await
    }

    /// Removes the workload, its disks and its claims. The record stays as deleted.
    ///
    /// # Errors
    /// [`Error::PreconditionFailed`], [`Error::BackendUnavailable`].
    pub async fn delete(&self, id: ResourceId, options: RequestOptions) -> Result<Accepted> {
        self.act(id, Action::Delete, Arguments::default(), options).await
    }

    /// Starts, stops, restarts or deletes. Other actions have methods of their own.
    ///
    /// # Errors
    /// [`Error::InvalidState`], [`Error::TooManyOperations`], [`Error::Conflict`] where CPU or memory is
    /// taken, [`Error::PreconditionFailed`], [`Error::BackendUnavailable`].
    pub async fn act(
        &self,
        id: ResourceId,
        action: Action,
        arguments: Arguments,
        options: RequestOptions,
    ) -> Result<Accepted> {
        self.writable(id, action.as_str()).await?;
        self.accepting()?;
        match action {
            Action::Start | Action::Stop | Action::Restart | Action::Delete => {
                self.core
                    .act(id, action, arguments, None, self.asking(&options))
                    .await
            }
            Action::Create
            | Action::Update
            | Action::SnapshotCreate
            | Action::SnapshotRestore
            | Action::SnapshotDelete => Err(Error::Unsupported {
                what: format!("the action {action} by this call"),
                reason: "it has a call of its own".to_owned(),
            }),
        }
    }
}
