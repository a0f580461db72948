//! A node with simulated cards: the fake NVML, a fake `/sys` and `/proc`, and what the tests ask of them.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hwm_core::accelerator::{Accelerators, Inventory, Placement};
use hwm_core::backend::Call;
use hwm_core::config::{GpuRequest, ResourceType};
use hwm_core::id::{NodeId, ResourceId};
use hwm_core::ledger::Claim;
use hwm_gpu::{HostRoots, NvmlAccelerators, Options};
use hwm_gpu_fake::{Card, Fault, FaultKind, World};

pub const CONTAINER: ResourceType = ResourceType::ApplicationContainer;
pub const MACHINE: ResourceType = ResourceType::VirtualMachine;

/// The first card of a lab, and its audio function.
pub const CARD: &str = "0000:10:00.0";
pub const AUDIO: &str = "0000:10:00.1";

/// The fake library, as cargo built it beside this test.
pub fn library() -> PathBuf {
    let own = std::env::current_exe().expect("a test has a path");
    let path = own.with_file_name("libhwm_gpu_fake.so");
    assert!(path.exists(), "cargo built no fake NVML at {}", path.display());
    path
}

pub struct Lab {
    pub folder: tempfile::TempDir,
    pub library: PathBuf,
}

impl Lab {
    pub fn new(cards: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut world = World::of(cards).unwrap();
        let lab_folder = folder.path();
        world.sysfs = Some(lab_folder.join("sys"));
        world.dev = Some(lab_folder.join("dev"));
        fs::create_dir_all(lab_folder.join("dev/vfio")).unwrap();
        fs::create_dir_all(lab_folder.join("sys/bus/pci/drivers/nvidia")).unwrap();
        fs::create_dir_all(lab_folder.join("sys/bus/pci/drivers/vfio-pci")).unwrap();
        let boot = lab_folder.join("proc/sys/kernel/random");
        fs::create_dir_all(&boot).unwrap();
        fs::write(boot.join("boot_id"), "boot-1\n").unwrap();
        for (i, card) in world.cards.iter().enumerate() {
            fs::write(lab_folder.join(format!("dev/nvidia{i}")), "").unwrap();
            card_in_sysfs(lab_folder, card, 10 + i as u32);
        }
        let library = world.create(lab_folder, &library()).unwrap();
        Self { folder, library }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn options(&self) -> Options {
        let mut options = Options::new(self.path().join("state"));
        options.library = Some(self.library.clone());
        options.roots = HostRoots {
            sys: self.path().join("sys"),
            proc: self.path().join("proc"),
            dev: self.path().join("dev"),
        };
        options
    }

    pub async fn open(&self) -> NvmlAccelerators {
        NvmlAccelerators::open(self.options()).await.unwrap()
    }

    pub fn world(&self) -> World {
        World::read(self.path()).unwrap()
    }

    pub fn edit<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        World::edit(self.path(), change).unwrap()
    }

    pub fn fail(&self, function: &str, call: Option<u64>, kind: FaultKind) {
        let fault = Fault {
            function: function.to_owned(),
            call,
            kind,
        };
        self.edit(|w| w.set_faults(vec![fault]));
    }

    pub fn heal(&self) {
        self.edit(|w| w.set_faults(Vec::new()));
    }

    /// Another boot of the host: instances are gone, modes and files stay.
    pub fn reboot(&self, name: &str) {
        fs::write(self.path().join("proc/sys/kernel/random/boot_id"), name).unwrap();
        self.edit(|w| w.cards.iter_mut().for_each(|c| c.instances.clear()));
    }

    /// Puts a function on another driver, or on none.
    pub fn bind(&self, address: &str, driver: Option<&str>) {
        bind(self.path(), address, driver);
    }

    /// What libvirt does with the first card at the start of a machine.
    pub fn machine_takes(&self) {
        self.bind(CARD, Some("vfio-pci"));
        self.bind(AUDIO, Some("vfio-pci"));
    }

    /// The same at its end.
    pub fn machine_gives_back(&self) {
        self.bind(CARD, Some("nvidia"));
        self.bind(AUDIO, Some("snd_hda_intel"));
    }

    /// Somebody else's instance, whole.
    pub fn foreign(&self, card: usize, profile: u32, start: u32) {
        self.edit(|w| {
            w.set_faults(vec![Fault {
                function: "nvmlSystemGetDriverVersion".to_owned(),
                call: None,
                kind: FaultKind::Foreign { card, profile, start },
            }]);
        });
    }
}

fn device(root: &Path, address: &str) -> PathBuf {
    root.join("sys/devices/pci0000:00").join(address)
}

/// A card with its audio function, in a group of its own.
fn card_in_sysfs(root: &Path, card: &Card, group: u32) {
    let address = card.pci_address();
    function_in_sysfs(root, &address, "0x030200", group, Some("nvidia"));
    function_in_sysfs(
        root,
        &address.replace(".0", ".1").replace("0000.1", "0000"),
        "0x040300",
        group,
        Some("snd_hda_intel"),
    );
}

pub fn function_in_sysfs(root: &Path, address: &str, class: &str, group: u32, driver: Option<&str>) {
    let folder = device(root, address);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("vendor"), "0x10de\n").unwrap();
    fs::write(folder.join("device"), "0x20b0\n").unwrap();
    fs::write(folder.join("class"), format!("{class}\n")).unwrap();
    fs::write(folder.join("numa_node"), "0\n").unwrap();
    let devices = root.join("sys/bus/pci/devices");
    fs::create_dir_all(&devices).unwrap();
    symlink(&folder, devices.join(address)).unwrap();
    let members = root.join(format!("sys/kernel/iommu_groups/{group}/devices"));
    fs::create_dir_all(&members).unwrap();
    symlink(&folder, members.join(address)).unwrap();
    symlink(members.parent().unwrap(), folder.join("iommu_group")).unwrap();
    bind(root, address, driver);
}

fn bind(root: &Path, address: &str, driver: Option<&str>) {
    let link = device(root, address).join("driver");
    if fs::symlink_metadata(&link).is_ok() {
        fs::remove_file(&link).unwrap();
    }
    if let Some(driver) = driver {
        symlink(root.join("sys/bus/pci/drivers").join(driver), link).unwrap();
    }
}

pub fn call(generation: u64) -> Call {
    Call::new(generation, Duration::from_secs(20))
}

pub fn quick(generation: u64) -> Call {
    Call::new(generation, Duration::from_millis(1000))
}

pub fn resource(n: u128) -> ResourceId {
    ResourceId::from_u128(n)
}

pub fn slice(profile: &str) -> GpuRequest {
    GpuRequest::Slice(profile.to_owned())
}

pub fn named(name: &str) -> GpuRequest {
    GpuRequest::Named(vec![name.to_owned()])
}

pub fn claims(holder: ResourceId, placements: &[Placement]) -> Vec<Claim> {
    let keys = placements.iter().flat_map(Placement::keys);
    keys.map(|key| Claim {
        node: NodeId::new("n"),
        key,
        holder,
        amount: 1,
    })
    .collect()
}

pub fn plan(gpus: &NvmlAccelerators, request: &GpuRequest) -> Placement {
    gpus.plan(request, CONTAINER, &[]).unwrap().remove(0)
}

pub fn instances(inventory: &Inventory) -> usize {
    inventory.cards.iter().map(|c| c.instances.len()).sum()
}

pub fn made(world: &World) -> usize {
    world.cards.iter().map(|c| c.instances.len()).sum()
}
