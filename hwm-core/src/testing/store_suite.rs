//! What every [`Store`] must pass.
//!
//! ```
//! use hwm_core::store::memory::MemoryStore;
//! use hwm_core::testing::store_suite;
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! store_suite::run(async || MemoryStore::new()).await;
//! # });
//! ```
//!
//! It checks the promises of [`crate::store`] through the trait alone; durability, which a trait cannot
//! show, is for the store's own tests.

mod claims;
mod commits;
mod fixtures;
mod journal;
mod lists;
mod sequences;

use crate::store::Store;

/// Runs every check, each on a fresh, empty store that `make` answers.
///
/// # Panics
///
/// When a promise is broken, with what was promised.
pub async fn run<S: Store>(make: impl AsyncFn() -> S) {
    commits::records_read_back(&make().await).await;
    commits::secrets_are_where_they_must_be(&make().await).await;
    commits::revisions_are_expected(&make().await).await;
    commits::failed_transactions_leave_nothing(&make().await).await;
    commits::one_of_many_wins(&make().await).await;
    commits::readers_see_transactions_whole(&make().await).await;
    commits::answers_are_seen_at_once(&make().await).await;

    claims::keys_have_one_holder(&make().await).await;
    claims::release_comes_before_claim(&make().await).await;
    claims::pools_keep_their_limits(&make().await).await;
    claims::races_do_not_exceed(&make().await).await;
    claims::filters_select(&make().await).await;

    lists::pages_agree_with_a_plain_sort(&make().await).await;
    lists::search_is_by_text_alone(&make().await).await;
    lists::counts_follow_every_change(&make().await).await;
    lists::phases_are_walked_in_order(&make().await).await;

    journal::operations_keep_their_order(&make().await).await;
    journal::operations_are_seen_by_whom_they_belong_to(&make().await).await;
    journal::events_are_numbered_for_ever(&make().await).await;
    journal::answers_are_remembered_once(&make().await).await;
    journal::notes_and_snapshots_are_kept(&make().await).await;
    journal::pruning_drops_what_is_old_and_over(&make().await).await;

    for seed in 0..8 {
        sequences::agree_with_the_memory_store(&make().await, seed).await;
    }
}
