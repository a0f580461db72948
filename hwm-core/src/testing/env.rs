//! An environment that a seed replays: virtual time, seeded randomness, and tasks that can be made to die
//! together as those of a killed process do.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::env::{BoxFuture, Environment};
use crate::units::Timestamp;

/// Time, randomness and tasks that a seed replays.
///
/// Time is that of the tokio runtime it was made in. Made inside a current-thread runtime whose clock is
/// paused, a whole run is a function of the seed, as long as nothing uses threads or `tokio::select!`
/// without `biased`, and takes no time that is slept.
///
/// ```
/// use std::time::Duration;
/// use hwm_core::env::Environment;
/// use hwm_core::testing::env::SimEnvironment;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let env = SimEnvironment::new(7);
/// let before = env.now();
/// env.sleep(Duration::from_secs(3600)).await;
/// assert_eq!(env.now().since(before), Duration::from_secs(3600));
/// assert_eq!(SimEnvironment::new(7).random(), SimEnvironment::new(7).random());
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct SimEnvironment {
    began: Instant,
    random: Arc<Mutex<u64>>,
}

/// What virtual time begins with: 2026-01-01T00:00:00Z.
const BEGINNING: i64 = 1_767_225_600_000;

impl SimEnvironment {
    /// A new one; must be called inside a tokio runtime.
    pub fn new(seed: u64) -> Self {
        Self {
            began: Instant::now(),
            random: Arc::new(Mutex::new(seed)),
        }
    }

    /// 64 random bits.
    pub fn random_u64(&self) -> u64 {
        let mut state = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A random number below `bound`; 0 when `bound` is 0.
    pub fn random_below(&self, bound: u64) -> u64 {
        ((u128::from(self.random_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// An environment for one life of a process: the same time and randomness, tasks of its own.
    pub fn incarnation(&self) -> Incarnation {
        Incarnation {
            env: self.clone(),
            life: Arc::default(),
        }
    }
}

impl Environment for SimEnvironment {
    fn now(&self) -> Timestamp {
        let since = i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX);
        Timestamp::from_millis(BEGINNING.saturating_add(since))
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn random(&self) -> u128 {
        (u128::from(self.random_u64()) << 64) | u128::from(self.random_u64())
    }

    fn spawn(&self, task: BoxFuture<()>) {
        tokio::spawn(task);
    }
}

/// One life of a process. Clones are the same life.
///
/// After [`crash`](Self::crash) its tasks are gone, new ones are not begun and sleeps do not end: what
/// belonged to the process never runs again, wherever it was.
#[derive(Debug, Clone)]
pub struct Incarnation {
    env: SimEnvironment,
    life: Arc<Life>,
}

#[derive(Debug, Default)]
struct Life {
    over: AtomicBool,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Incarnation {
    /// Kills it.
    pub fn crash(&self) {
        self.life.over.store(true, Ordering::SeqCst);
        let tasks = std::mem::take(&mut *self.life.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            task.abort();
        }
    }

    /// Whether it was killed.
    pub fn is_over(&self) -> bool {
        self.life.over.load(Ordering::SeqCst)
    }

    /// Runs `future` as a part of this life: none of it runs after the crash, and it then never ends.
    pub fn within<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        Within {
            life: Arc::clone(&self.life),
            future: Box::pin(future),
        }
    }
}

impl Environment for Incarnation {
    fn now(&self) -> Timestamp {
        self.env.now()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        Box::pin(self.within(tokio::time::sleep(duration)))
    }

    fn random(&self) -> u128 {
        self.env.random()
    }

    fn spawn(&self, task: BoxFuture<()>) {
        if self.is_over() {
            return;
        }
        let handle = tokio::spawn(self.within(task)).abort_handle();
        let mut tasks = self.life.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|t| !t.is_finished());
        tasks.push(handle);
    }
}

struct Within<F> {
    life: Arc<Life>,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Within<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if self.life.over.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        match self.future.as_mut().poll(context) {
            // What it did before it died counts; that it ended is known to nobody.
            Poll::Ready(_) if self.life.over.load(Ordering::SeqCst) => Poll::Pending,
            polled => polled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_passes_only_in_sleeps() {
        let env = SimEnvironment::new(1);
        let before = env.now();
        env.sleep(Duration::from_millis(1500)).await;
        assert_eq!(env.now().since(before), Duration::from_millis(1500));
    }

    #[tokio::test(start_paused = true)]
    async fn a_seed_gives_the_same_numbers() {
        let (a, b, c) = (
            SimEnvironment::new(1),
            SimEnvironment::new(1),
            SimEnvironment::new(2),
        );
        assert_eq!(a.random(), b.random());
        assert_ne!(a.random(), c.random());
        assert!((0..1000).all(|_| a.random_below(10) < 10));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_of_a_crashed_life_runs_on() {
        let env = SimEnvironment::new(1);
        let life = env.incarnation();
        let ran = Arc::new(AtomicBool::new(false));
        let (sleeper, flag) = (life.clone(), Arc::clone(&ran));
        life.spawn(Box::pin(async move {
            sleeper.sleep(Duration::from_secs(1)).await;
            flag.store(true, Ordering::SeqCst);
        }));
        let direct = life.within(async { 1 });
        life.crash();
        let flag = Arc::clone(&ran);
        life.spawn(Box::pin(async move { flag.store(true, Ordering::SeqCst) }));
        let ended = tokio::time::timeout(Duration::from_secs(10), direct).await;
        assert!(ended.is_err());
        assert!(!ran.load(Ordering::SeqCst));
    }
}
