//! What callers allocate in a session: sets of events, and samples.

use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings::*;

use super::{Context, LOST, State, UNINITIALIZED, UNKNOWN, current, state};
use crate::mig;
use crate::world;

pub(super) struct EventSet {
    cards: Vec<usize>,
    seen: usize,
}

/// What a slice did up to a moment.
#[derive(Clone)]
pub(crate) struct Sample {
    pub(crate) card: usize,
    pub(crate) instance: u32,
    /// None before it is taken.
    pub(crate) time: Option<Instant>,
}

pub(crate) fn create_set(context: &Context) -> usize {
    let mut guard = state();
    let state = guard.get_or_insert_default();
    state.sets.push(Some(EventSet {
        cards: Vec::new(),
        seen: context.world.events.len(),
    }));
    state.sets.len()
}

pub(crate) fn register(set: usize, card: usize) -> Result<(), nvmlReturn_t> {
    let mut guard = state();
    let sets = &mut guard.get_or_insert_default().sets;
    let set = set
        .checked_sub(1)
        .and_then(|i| sets.get_mut(i)?.as_mut())
        .ok_or(mig::INVALID)?;
    set.cards.push(card);
    Ok(())
}

pub(crate) fn free_set(set: usize) -> Result<(), nvmlReturn_t> {
    let mut guard = state();
    let sets = &mut guard.get_or_insert_default().sets;
    let set = set
        .checked_sub(1)
        .and_then(|i| sets.get_mut(i))
        .ok_or(mig::INVALID)?;
    set.take().map(|_| ()).ok_or(mig::INVALID)
}

pub(crate) fn new_sample() -> usize {
    let mut guard = state();
    let samples = &mut guard.get_or_insert_default().samples;
    samples.push(Some(Sample {
        card: 0,
        instance: 0,
        time: None,
    }));
    samples.len()
}

fn sample_mut(state: &mut State, number: usize) -> Result<&mut Option<Sample>, nvmlReturn_t> {
    let found = number.checked_sub(1).and_then(|i| state.samples.get_mut(i));
    found.filter(|s| s.is_some()).ok_or(mig::INVALID)
}

pub(crate) fn sample(number: usize) -> Result<Sample, nvmlReturn_t> {
    let mut guard = state();
    sample_mut(guard.get_or_insert_default(), number)?
        .clone()
        .filter(|s| s.time.is_some())
        .ok_or(mig::INVALID)
}

pub(crate) fn take_sample(number: usize, card: usize, instance: u32) -> Result<(), nvmlReturn_t> {
    let mut guard = state();
    *sample_mut(guard.get_or_insert_default(), number)? = Some(Sample {
        card,
        instance,
        time: Some(Instant::now()),
    });
    Ok(())
}

pub(crate) fn free_sample(number: usize) -> Result<(), nvmlReturn_t> {
    let mut guard = state();
    *sample_mut(guard.get_or_insert_default(), number)? = None;
    Ok(())
}

/// The next event of a set, waiting for one.
pub(crate) fn wait(set: usize, limit: Duration) -> Result<world::Event, nvmlReturn_t> {
    let begun = Instant::now();
    loop {
        {
            let mut guard = state();
            let state = guard.get_or_insert_default();
            if state.sessions == 0 {
                return Err(UNINITIALIZED);
            }
            let world = current(state).map_err(|_| UNKNOWN)?;
            let set = set
                .checked_sub(1)
                .and_then(|i| state.sets.get_mut(i)?.as_mut())
                .ok_or(mig::INVALID)?;
            while let Some(event) = world.events.get(set.seen) {
                set.seen += 1;
                if set.cards.contains(&event.card) {
                    return Ok(event.clone());
                }
            }
            if set
                .cards
                .iter()
                .any(|c| world.cards.get(*c).is_some_and(|c| c.lost))
            {
                return Err(LOST);
            }
        }
        if begun.elapsed() >= limit {
            return Err(nvmlReturn_enum_NVML_ERROR_TIMEOUT);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
