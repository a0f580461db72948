//! One piece of work for however many ask for it: image pulls and model fetches.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use hwm_core::backend::{BackendError, BackendErrorKind, ProgressSink, Result};
use hwm_core::env::BoxFuture;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Work under way, by key. It goes on while at least one caller waits for it.
pub(crate) struct Flights<K, T> {
    under_way: Mutex<HashMap<K, Weak<Flight<T>>>>,
}

struct Flight<T> {
    state: watch::Receiver<State<T>>,
    task: AbortHandle,
}

#[derive(Clone)]
enum State<T> {
    Begun,
    At(String, Option<u8>),
    Done(Result<T>),
}

impl<T> Drop for Flight<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self {
            under_way: Mutex::new(HashMap::new()),
        }
    }
}

impl<K: Hash + Eq, T: Clone + Send + Sync + 'static> Flights<K, T> {
    /// Joins the work of that key, or begins it, and reports its progress.
    pub(crate) async fn join(
        &self,
        key: K,
        progress: &ProgressSink,
        begin: impl FnOnce(ProgressSink) -> BoxFuture<Result<T>>,
    ) -> Result<T> {
        let flight = self.flight(key, begin);
        let mut state = flight.state.clone();
        loop {
            match state.borrow_and_update().clone() {
                State::Begun => {}
                State::At(message, percent) => progress.report(message, percent),
                State::Done(result) => return result,
            }
            if state.changed().await.is_err() {
                return Err(BackendError::new(
                    BackendErrorKind::Failed,
                    "waiting for shared work",
                    "it ended without an outcome",
                ));
            }
        }
    }

    fn flight(&self, key: K, begin: impl FnOnce(ProgressSink) -> BoxFuture<Result<T>>) -> Arc<Flight<T>> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.retain(|_, flight| flight.strong_count() > 0);
        let running = under_way.get(&key).and_then(Weak::upgrade);
        if let Some(flight) = running
            && !matches!(*flight.state.borrow(), State::Done(_))
        {
            return flight;
        }
        let (tell, state) = watch::channel(State::Begun);
        let tell = Arc::new(tell);
        let teller = Arc::clone(&tell);
        let work = begin(ProgressSink::new(move |message, percent| {
            teller.send_replace(State::At(message, percent));
        }));
        let task = tokio::spawn(async move {
            let result = work.await;
            tell.send_replace(State::Done(result));
        });
        let flight = Arc::new(Flight {
            state,
            task: task.abort_handle(),
        });
        under_way.insert(key, Arc::downgrade(&flight));
        flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    fn work(
        begun: &Arc<AtomicUsize>,
        ended: &Arc<AtomicUsize>,
    ) -> impl FnOnce(ProgressSink) -> BoxFuture<Result<u8>> {
        let (begun, ended) = (Arc::clone(begun), Arc::clone(ended));
        move |progress| {
            Box::pin(async move {
                begun.fetch_add(1, Ordering::SeqCst);
                progress.report("half", Some(50));
                tokio::time::sleep(Duration::from_secs(1)).await;
                ended.fetch_add(1, Ordering::SeqCst);
                Ok(7)
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_askers_share_one_piece_of_work_and_its_progress() {
        let (begun, ended) = (Arc::default(), Arc::default());
        let flights = Flights::default();
        let seen = Arc::new(AtomicUsize::new(0));
        let sink = {
            let seen = Arc::clone(&seen);
            ProgressSink::new(move |_, percent| {
                assert_eq!(percent, Some(50));
                seen.fetch_add(1, Ordering::SeqCst);
            })
        };
        let asks = (0..50).map(|_| flights.join("k", &sink, work(&begun, &ended)));
        let results = futures_util::future::join_all(asks).await;
        assert!(results.iter().all(|r| r == &Ok(7)));
        assert_eq!(begun.load(Ordering::SeqCst), 1);
        assert_eq!(seen.load(Ordering::SeqCst), 50);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_caller_does_not_end_the_work_of_others_and_the_last_one_does() {
        let (begun, ended) = (Arc::default(), Arc::default());
        let flights = Flights::default();
        let sink = ProgressSink::default();
        {
            let first = flights.join("k", &sink, work(&begun, &ended));
            let second = flights.join("k", &sink, work(&begun, &ended));
            tokio::pin!(second);
            tokio::select! {
                biased;
                _ = &mut second => unreachable!("the work takes a second"),
                () = async { let _ = tokio::time::timeout(Duration::from_millis(100), first).await; } => {}
            }
            assert_eq!(second.await, Ok(7));
        }
        let lone = flights.join("k", &sink, work(&begun, &ended));
        let _ = tokio::time::timeout(Duration::from_millis(100), lone).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(begun.load(Ordering::SeqCst), 2);
        assert_eq!(ended.load(Ordering::SeqCst), 1);
    }
}
