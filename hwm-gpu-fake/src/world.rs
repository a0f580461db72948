//! The file that the library answers from.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use hwm_gpu::boards::{self, Board};
use serde::{Deserialize, Serialize};

/// Everything that the library knows.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct World {
    /// Version of the driver.
    pub driver: String,
    /// The cards, in the order of their minor numbers.
    pub cards: Vec<Card>,
    /// What happened, in order.
    pub events: Vec<Event>,
    /// Which calls fail.
    pub faults: Vec<Fault>,
    /// Moves when the faults change, so that calls are counted anew.
    pub fault_epoch: u64,
    /// The last number given to an instance.
    pub serial: u32,
    /// A `/sys` in which a card is hidden while its driver is not `nvidia`.
    pub sysfs: Option<PathBuf>,
    /// A `/dev` whose `nvidiaN` is held open while a process has the library initialised.
    pub dev: Option<PathBuf>,
}

/// A card.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Card {
    /// Which board it is, for example `a100-40gb`.
    pub board: String,
    /// Its UUID.
    pub uuid: String,
    /// PCI bus; domain and function are 0, the device is 0.
    pub bus: u32,
    /// NUMA node.
    pub numa: i32,
    /// Which PCIe switch it is on.
    pub switch: u32,
    /// Cards that it has NVLinks to.
    pub nvlinks: Vec<usize>,
    /// Whether MIG is on.
    pub mig: bool,
    /// Whether MIG will be on after a reset.
    pub mig_pending: bool,
    /// Whether persistence mode is on.
    pub persistence: bool,
    /// Whether it has fallen off the bus.
    pub lost: bool,
    /// Whether heat slows it down.
    pub hot: bool,
    /// Whether another driver has it.
    pub hidden: bool,
    /// Its GPU instances.
    pub instances: Vec<GpuInstance>,
    /// What runs on it.
    pub processes: Vec<Process>,
}

/// A GPU instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuInstance {
    /// Never given twice.
    pub serial: u32,
    /// Its id, which follows from its place.
    pub id: u32,
    /// The card's number of its profile.
    pub profile: u32,
    /// Its first slot.
    pub start: u32,
    /// How many slots it takes.
    pub size: u32,
    /// Its compute instances.
    pub compute: Vec<ComputeInstance>,
}

/// A compute instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComputeInstance {
    /// Never given twice.
    pub serial: u32,
    /// Its id.
    pub id: u32,
    /// The number of its profile.
    pub profile: u32,
    /// How many compute slices it has.
    pub slices: u32,
    /// UUID of the MIG device.
    pub uuid: String,
}

/// A process on a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Memory that it uses, in MiB.
    pub mib: u64,
    /// The GPU instance that it runs in.
    pub instance: Option<u32>,
}

/// Something that happened to a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The card.
    pub card: usize,
    /// NVML's event type; 8 is an XID.
    pub kind: u64,
    /// The number of the XID.
    pub data: u64,
    /// The GPU instance that it is about.
    pub instance: Option<u32>,
}

/// A call that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The function, or `*` for any.
    pub function: String,
    /// The call that it is, from 1, counted in each process; every one when absent.
    pub call: Option<u64>,
    /// What happens.
    pub kind: FaultKind,
}

/// How a call goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FaultKind {
    /// It answers this and does nothing.
    Return(u32),
    /// It does what it should, and answers this.
    ReturnAfter(u32),
    /// It takes so many milliseconds.
    Hang(u64),
    /// Its text is no UTF-8.
    Garbage,
    /// Its text is a terminal's escape sequence over two lines.
    Hostile,
    /// The process dies before its effect.
    AbortBefore,
    /// The process dies after its effect.
    AbortAfter,
    /// Somebody else makes a GPU instance just before.
    Foreign {
        /// The card.
        card: usize,
        /// The card's number of the profile.
        profile: u32,
        /// Its first slot.
        start: u32,
    },
}

impl Card {
    /// The board; none where the file names an unknown one.
    pub fn board(&self) -> Option<&'static Board> {
        boards::board(&self.board)
    }

    /// Its PCI address as the kernel writes it.
    pub fn pci_address(&self) -> String {
        format!("0000:{:02x}:00.0", self.bus)
    }
}

impl World {
    /// The world of a list of boards, such as `a100-40gb+mig*2,a30`. Four cards share a PCIe switch, eight a
    /// NUMA node, and cards of one kind on one node are joined by NVLink where they have it.
    ///
    /// # Errors
    ///
    /// A list that names no cards.
    pub fn of(list: &str) -> Result<Self, boards::InvalidCards> {
        let mut cards: Vec<Card> = Vec::new();
        for (n, card) in (0..).zip(boards::parse_cards(list)?) {
            cards.push(Card {
                board: card.board.name.to_owned(),
                uuid: format!("GPU-{}", uuid(0xCA4D, u64::from(n))),
                bus: 0x10 + n,
                numa: (n / 8) as i32,
                switch: n / 4,
                mig: card.mig,
                mig_pending: card.mig,
                ..Card::default()
            });
        }
        let kinds: Vec<_> = cards.iter().map(|c| (c.board.clone(), c.numa)).collect();
        for (i, card) in cards.iter_mut().enumerate() {
            if card.board().is_some_and(|b| b.nvlinks > 0) {
                card.nvlinks = (0..kinds.len())
                    .filter(|j| *j != i && kinds[*j] == kinds[i])
                    .collect();
            }
        }
        Ok(Self {
            driver: "570.133.20".to_owned(),
            cards,
            ..Self::default()
        })
    }

    /// Writes the world into a folder together with a copy of the library, and answers the library's path.
    /// Each folder is a world of its own, also for libraries loaded into one process.
    ///
    /// # Errors
    ///
    /// What writing the files can fail with.
    pub fn create(&self, folder: &Path, library: &Path) -> io::Result<PathBuf> {
        let path = folder.join("libnvidia-ml.so.1");
        fs::copy(library, &path)?;
        write(&folder.join("world.json"), self)?;
        Ok(path)
    }

    /// The world in a folder.
    ///
    /// # Errors
    ///
    /// What reading the file can fail with.
    pub fn read(folder: &Path) -> io::Result<Self> {
        load(&folder.join("world.json"))
    }

    /// Changes the world in a folder, while no other process does.
    ///
    /// # Errors
    ///
    /// What reading and writing the file can fail with.
    pub fn edit<T>(folder: &Path, change: impl FnOnce(&mut Self) -> T) -> io::Result<T> {
        edit(&folder.join("world.json"), change)
    }

    /// Sets which calls fail, and counts calls anew.
    pub fn set_faults(&mut self, faults: Vec<Fault>) {
        self.faults = faults;
        self.fault_epoch += 1;
    }
}

/// A UUID that depends on nothing but these numbers.
pub(crate) fn uuid(space: u64, number: u64) -> String {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let a = mix(space.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ number.wrapping_add(1));
    let b = mix(a ^ number.rotate_left(32));
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xfff,
        (b >> 52) & 0xfff,
        b & 0xffff_ffff_ffff
    )
}

pub(crate) fn load(path: &Path) -> io::Result<World> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

pub(crate) fn edit<T>(path: &Path, change: impl FnOnce(&mut World) -> T) -> io::Result<T> {
    let lock = File::create(path.with_extension("lock"))?;
    lock.lock()?;
    let mut world = load(path)?;
    let answer = change(&mut world);
    write(path, &world)?;
    Ok(answer)
}

fn write(path: &Path, world: &World) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(world)?)?;
    fs::rename(&temporary, path)
}
