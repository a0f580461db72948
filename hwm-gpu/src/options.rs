//! What an operator decides.

use std::path::PathBuf;
use std::time::Duration;

pub use crate::sysfs::HostRoots;

/// Which MIG instances that hwm did not make may be handed out by it. None is ever destroyed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Adopt {
    /// None.
    #[default]
    None,
    /// These, by UUID.
    These(Vec<String>),
    /// All that there are.
    All,
}

/// How GPUs are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where hwm remembers what it did to cards; one folder for each daemon.
    pub state: PathBuf,
    /// The NVML library; the system's where absent.
    pub library: Option<PathBuf>,
    /// Whether MIG may be switched on where a slice is wanted and the card does so without a reset.
    pub switch_mig: bool,
    /// Which instances that hwm did not make may be handed out.
    pub adopt: Adopt,
    /// PCI addresses of further devices that may be passed through, beyond NVIDIA's.
    pub also: Vec<String>,
    /// How often the cards are looked at.
    pub refresh: Duration,
    /// How long a call to NVML may take before NVML counts as hung.
    pub patience: Duration,
    /// Where the kernel is asked.
    pub roots: HostRoots,
}

impl Options {
    /// The defaults, with `state` as the folder to remember in.
    pub fn new(state: impl Into<PathBuf>) -> Self {
        Self {
            state: state.into(),
            library: None,
            switch_mig: false,
            adopt: Adopt::None,
            also: Vec::new(),
            refresh: Duration::from_secs(10),
            patience: Duration::from_secs(20),
            roots: HostRoots::default(),
        }
    }
}
