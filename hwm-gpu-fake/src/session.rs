//! What a process that loaded the library has: its world, its sessions, its event sets, its count of calls.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use nvml_wrapper_sys::bindings::*;

use crate::mig;
use crate::world::{self, FaultKind, World};

mod sets;

use sets::EventSet;
pub(crate) use sets::{
    Sample, create_set, free_sample, free_set, new_sample, register, sample, take_sample, wait,
};

const UNKNOWN: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_UNKNOWN;
const UNINITIALIZED: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_UNINITIALIZED;
const LOST: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST;

/// Where the world is.
enum Source {
    File(PathBuf),
    Memory(Box<Mutex<World>>),
    Missing,
}

#[derive(Default)]
struct State {
    sessions: u32,
    visible: Vec<usize>,
    open: Vec<File>,
    cached: Option<((u64, i64, i64, u64), World)>,
    sets: Vec<Option<EventSet>>,
    samples: Vec<Option<Sample>>,
    epoch: u64,
    counts: HashMap<String, u64>,
    total: u64,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);
static SOURCE: OnceLock<Source> = OnceLock::new();

/// How the text of an answer is spoiled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Text {
    Fine,
    Garbage,
    Hostile,
}

/// What a function works on.
pub(crate) struct Context {
    pub(crate) world: World,
    pub(crate) visible: Vec<usize>,
    pub(crate) text: Text,
}

impl Context {
    /// The card, unless it is lost.
    pub(crate) fn card(&self, card: usize) -> Result<&world::Card, nvmlReturn_t> {
        let card = self.world.cards.get(card).ok_or(mig::INVALID)?;
        if card.lost { Err(LOST) } else { Ok(card) }
    }

    pub(crate) fn card_mut(&mut self, card: usize) -> Result<(&mut world::Card, &mut u32), nvmlReturn_t> {
        let World { cards, serial, .. } = &mut self.world;
        let card = cards.get_mut(card).ok_or(mig::INVALID)?;
        if card.lost { Err(LOST) } else { Ok((card, serial)) }
    }
}

/// Runs a function that changes nothing.
pub(crate) fn read(name: &str, body: impl FnOnce(&mut Context) -> Result<(), nvmlReturn_t>) -> nvmlReturn_t {
    run(name, false, body)
}

/// Runs a function that changes the world.
pub(crate) fn change(
    name: &str,
    body: impl FnOnce(&mut Context) -> Result<(), nvmlReturn_t>,
) -> nvmlReturn_t {
    run(name, true, body)
}

fn run(
    name: &str,
    changes: bool,
    body: impl FnOnce(&mut Context) -> Result<(), nvmlReturn_t>,
) -> nvmlReturn_t {
    let (world, visible, faults) = {
        let mut guard = state();
        let state = guard.get_or_insert_default();
        if state.sessions == 0 {
            return UNINITIALIZED;
        }
        let Ok(world) = current(state) else { return UNKNOWN };
        let faults = due(state, &world, name);
        (world, state.visible.clone(), faults)
    };
    let mut text = Text::Fine;
    let mut after = None;
    for fault in &faults {
        match fault {
            FaultKind::Return(code) => return *code,
            FaultKind::ReturnAfter(code) => after = Some(*code),
            // Outside the lock: a call that hangs must not hold up the others.
            FaultKind::Hang(ms) => std::thread::sleep(Duration::from_millis(*ms)),
            FaultKind::Garbage => text = Text::Garbage,
            FaultKind::Hostile => text = Text::Hostile,
            FaultKind::AbortBefore => std::process::abort(),
            FaultKind::AbortAfter => {}
            FaultKind::Foreign { card, profile, start } => {
                let made = edit(|world| foreign(world, *card, *profile, *start));
                if made.is_err() {
                    return UNKNOWN;
                }
            }
        }
    }
    let answer = if changes {
        let changed = edit(|world| {
            let mut context = Context {
                world: std::mem::take(world),
                visible,
                text,
            };
            let before = context.world.clone();
            let answer = body(&mut context);
            *world = if answer.is_ok() { context.world } else { before };
            answer
        });
        changed.unwrap_or(Err(UNKNOWN))
    } else {
        body(&mut Context { world, visible, text })
    };
    if faults.contains(&FaultKind::AbortAfter) {
        std::process::abort();
    }
    match (answer, after) {
        (Ok(()), Some(code)) | (Err(code), _) => code,
        (Ok(()), None) => nvmlReturn_enum_NVML_SUCCESS,
    }
}

fn foreign(world: &mut World, card: usize, profile: u32, start: u32) {
    let World { cards, serial, .. } = world;
    if let Some(card) = cards.get_mut(card) {
        let size = mig::geometry(card)
            .ok()
            .and_then(|g| mig::profile(&g, profile).ok().map(|(_, p)| p.size));
        // Where the place is taken the foreigner fails too, as he would.
        if let Some(size) = size
            && let Ok(made) = mig::create(card, serial, profile, Some((start, u32::from(size))))
            && let Some(constant) = card.instances.iter().find(|i| i.serial == made)
        {
            let whole = mig::compute_profiles(card, constant)
                .ok()
                .and_then(|p| p.last().copied());
            if let Some(whole) = whole {
                let _made = mig::create_compute(card, serial, made, whole);
            }
        }
    }
}

/// Opens a session. Which cards the driver has is settled here, as with the real library.
pub(crate) fn init(name: &str) -> nvmlReturn_t {
    let mut guard = state();
    let state = guard.get_or_insert_default();
    let Ok(world) = current(state) else {
        return nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED;
    };
    for fault in due(state, &world, name) {
        match fault {
            FaultKind::Return(code) | FaultKind::ReturnAfter(code) => return code,
            FaultKind::Hang(ms) => std::thread::sleep(Duration::from_millis(ms)),
            FaultKind::AbortBefore | FaultKind::AbortAfter => std::process::abort(),
            FaultKind::Garbage | FaultKind::Hostile | FaultKind::Foreign { .. } => {}
        }
    }
    if state.sessions == 0 {
        let cards = world.cards.iter().enumerate();
        state.visible = cards
            .filter(|(_, c)| !c.hidden && driven(&world, c))
            .map(|(i, _)| i)
            .collect();
        if let Some(dev) = &world.dev {
            let nodes = state.visible.iter().map(|i| dev.join(format!("nvidia{i}")));
            state.open = nodes.filter_map(|n| File::open(n).ok()).collect();
        }
    }
    state.sessions += 1;
    nvmlReturn_enum_NVML_SUCCESS
}

fn driven(world: &World, card: &world::Card) -> bool {
    let Some(sysfs) = &world.sysfs else { return true };
    let driver = sysfs
        .join("bus/pci/devices")
        .join(card.pci_address())
        .join("driver");
    fs::read_link(driver).is_ok_and(|d| d.ends_with("nvidia"))
}

/// Closes a session; the device files go with the last.
pub(crate) fn shutdown() -> nvmlReturn_t {
    let mut guard = state();
    let state = guard.get_or_insert_default();
    if state.sessions == 0 {
        return UNINITIALIZED;
    }
    let faults = current(state).map(|world| due(state, &world, "nvmlShutdown"));
    let faults = faults.unwrap_or_default();
    if faults.contains(&FaultKind::AbortBefore) {
        std::process::abort();
    }
    state.sessions -= 1;
    if state.sessions == 0 {
        state.open.clear();
        state.visible.clear();
        state.sets.clear();
        state.samples.clear();
    }
    if faults.contains(&FaultKind::AbortAfter) {
        std::process::abort();
    }
    nvmlReturn_enum_NVML_SUCCESS
}

fn state() -> MutexGuard<'static, Option<State>> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The faults of this call.
fn due(state: &mut State, world: &World, name: &str) -> Vec<FaultKind> {
    if state.epoch != world.fault_epoch {
        state.epoch = world.fault_epoch;
        state.counts.clear();
        state.total = 0;
    }
    state.total += 1;
    let count = state.counts.entry(name.to_owned()).or_default();
    *count += 1;
    let (count, total) = (*count, state.total);
    let applies = |f: &&world::Fault| {
        let n = if f.function == "*" { total } else { count };
        (f.function == "*" || f.function == name) && f.call.is_none_or(|c| c == n)
    };
    world
        .faults
        .iter()
        .filter(applies)
        .map(|f| f.kind.clone())
        .collect()
}

fn current(state: &mut State) -> io::Result<World> {
    match source() {
        Source::Memory(world) => Ok(world.lock().unwrap_or_else(PoisonError::into_inner).clone()),
        Source::Missing => Err(io::ErrorKind::NotFound.into()),
        Source::File(path) => {
            let meta = fs::metadata(path)?;
            let stamp = (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len());
            if let Some((known, world)) = &state.cached
                && *known == stamp
            {
                return Ok(world.clone());
            }
            let world = world::load(path)?;
            state.cached = Some((stamp, world.clone()));
            Ok(world)
        }
    }
}

fn edit<T>(change: impl FnOnce(&mut World) -> T) -> io::Result<T> {
    match source() {
        Source::Memory(world) => Ok(change(&mut world.lock().unwrap_or_else(PoisonError::into_inner))),
        Source::Missing => Err(io::ErrorKind::NotFound.into()),
        Source::File(path) => world::edit(path, change),
    }
}

fn source() -> &'static Source {
    SOURCE.get_or_init(|| {
        let beside = own_path()
            .and_then(|p| Some(p.parent()?.join("world.json")))
            .filter(|p| p.exists());
        if let Some(path) = beside {
            return Source::File(path);
        }
        match std::env::var("HWM_FAKE_NVML") {
            Ok(path) if Path::new(&path).is_file() => Source::File(path.into()),
            Ok(list) => World::of(&list).map_or(Source::Missing, |w| Source::Memory(Box::new(Mutex::new(w)))),
            Err(_) => Source::Missing,
        }
    })
}

/// The file that this code was loaded from: the mapping that holds one of its functions.
fn own_path() -> Option<PathBuf> {
    let address = own_path as *const () as usize;
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (from, to) = line.split(' ').next()?.split_once('-')?;
        let range = usize::from_str_radix(from, 16).ok()?..usize::from_str_radix(to, 16).ok()?;
        range
            .contains(&address)
            .then(|| PathBuf::from(&line[line.find('/').unwrap_or(line.len())..]))
    })
}
