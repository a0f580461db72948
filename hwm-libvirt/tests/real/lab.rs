//! The private libvirt that the tests run on, and machines on it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hwm_core::backend::{
    Backend, Call, Exec, ExecOutput, ExecRequest, LogQuery, Observed, ObservedState, Workload,
};
use hwm_core::config::{CloudInit, Config, IpMode, MachineConfig, NetworkConfig, NetworkKind};
use hwm_core::id::ResourceId;
use hwm_core::units::Bytes;
use hwm_libvirt::{DomainType, Libvirt, LibvirtOptions};

/// A variable that `scripts/lab` sets.
pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: start a libvirt with scripts/lab and read its env file")
    })
}

/// A backend with an owner label and a pool of its own; all that it made goes with it.
pub(crate) struct Lab {
    pub(crate) backend: Libvirt,
    pub(crate) options: LibvirtOptions,
    folder: tempfile::TempDir,
    made: std::sync::Mutex<Vec<ResourceId>>,
}

impl Lab {
    pub(crate) async fn new(name: &str) -> Self {
        Self::with(name, |_| {}).await
    }

    pub(crate) async fn with(name: &str, change: impl FnOnce(&mut LibvirtOptions)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let catalog = folder.path().join("images.toml");
        // Nothing boots from the second, and so it takes no CPU.
        let empty = folder.path().join("empty.img");
        std::fs::File::create(&empty).unwrap().set_len(1 << 20).unwrap();
        let images = [
            guest_image("debian-12", &variable("HWM_TEST_GUEST"), "root"),
            guest_image("empty", empty.to_str().unwrap(), "root").replace("qcow2", "raw"),
        ];
        std::fs::write(&catalog, images.concat()).unwrap();
        let mut options = LibvirtOptions::new(format!("test-{name}-{}", std::process::id()));
        options.uri = variable("HWM_TEST_LIBVIRT_URI");
        options.bridge = variable("HWM_TEST_BRIDGE");
        options.domain_type = DomainType::parse(&variable("HWM_TEST_DOMAIN_TYPE")).unwrap();
        options.image_catalog = Some(catalog);
        options.pool = format!("hwm-test-{name}-{}", std::process::id());
        options.pool_path = format!("/var/lib/libvirt/images/{}", options.pool);
        options.cache_dir = folder.path().join("cache");
        change(&mut options);
        let backend = Libvirt::new(options.clone()).unwrap();
        backend.probe().await.unwrap();
        Self {
            backend,
            options,
            folder,
            made: std::sync::Mutex::default(),
        }
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// A machine that is removed with the lab.
    pub(crate) fn machine(&self) -> Workload {
        let workload = workload();
        self.made.lock().unwrap().push(workload.id);
        workload
    }

    pub(crate) async fn observed(&self, id: ResourceId) -> Option<Observed> {
        self.backend.inspect(&[id]).await.unwrap().pop()
    }

    pub(crate) async fn state(&self, id: ResourceId) -> Option<ObservedState> {
        self.observed(id).await.map(|o| o.state)
    }

    /// Waits until the console has said `text`.
    pub(crate) async fn said(&self, id: ResourceId, text: &str, limit: Duration) -> String {
        let deadline = Instant::now() + limit;
        loop {
            let log = self.log(id).await;
            if log.contains(text) {
                return log;
            }
            assert!(
                Instant::now() < deadline,
                "the console never said {text:?}, but:\n{log}"
            );
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    pub(crate) async fn log(&self, id: ResourceId) -> String {
        use futures_util::StreamExt;
        let lines = self.backend.logs(id, LogQuery::default()).await.unwrap();
        let lines: Vec<_> = lines.collect().await;
        lines.into_iter().map(|l| l.unwrap().message + "\n").collect()
    }

    /// Creates and starts a machine and waits until its guest is up.
    pub(crate) async fn up(&self, workload: &Workload) {
        self.begin(workload).await;
        self.said(workload.id, "guest ready", Duration::from_secs(120))
            .await;
        let until = Instant::now() + Duration::from_secs(30);
        while self.sh(workload.id, "true").await.is_none() {
            assert!(Instant::now() < until, "the guest's agent does not answer");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Creates and starts a machine.
    pub(crate) async fn begin(&self, workload: &Workload) {
        let call = call(workload.generation);
        self.backend.create(&call, workload).await.unwrap();
        self.backend.start(&call, workload).await.unwrap();
    }

    /// Runs a command by the guest's agent; none where the agent does not answer.
    pub(crate) async fn sh(&self, id: ResourceId, command: &str) -> Option<ExecOutput> {
        let request = ExecRequest {
            command: command.into(),
            working_dir: None,
            timeout: Duration::from_secs(20),
            output_limit: 4096,
        };
        self.backend.run(id, request).await.ok()
    }

    /// What a command prints that must succeed.
    pub(crate) async fn run(&self, id: ResourceId, command: &str) -> String {
        let output = self.sh(id, command).await.expect("the agent answers");
        assert_eq!(output.exit_code, 0, "{command}: {output:?}");
        output.stdout.trim().to_owned()
    }

    /// What libvirt has that carries an id in its name.
    pub(crate) fn traces(&self, id: &str) -> Vec<String> {
        let uri = &self.options.uri;
        virsh_at(uri, &["pool-refresh", &self.options.pool]);
        let domains = virsh_at(uri, &["list", "--all", "--name"]);
        let volumes = virsh_at(uri, &["vol-list", &self.options.pool]);
        let lines = domains.lines().chain(volumes.lines());
        lines
            .filter(|line| line.contains(id))
            .map(str::to_owned)
            .collect()
    }

    /// Removes all machines and the pool, and looks that nothing is left.
    pub(crate) async fn clean(self) {
        let uri = self.options.uri.clone();
        self.clean_at(&uri).await;
    }

    /// The same on another libvirt.
    pub(crate) async fn clean_at(self, uri: &str) {
        let virsh = |arguments: &[&str]| virsh_at(uri, arguments);
        let made = self.made.lock().unwrap().clone();
        for id in made {
            self.backend.remove(&call(u64::MAX), id).await.unwrap();
        }
        assert_eq!(self.backend.owned().await.unwrap(), []);
        let pool = &self.options.pool;
        virsh(&["pool-refresh", pool]);
        let left = virsh(&["vol-list", pool]);
        let left: Vec<&str> = left
            .lines()
            .filter(|l| l.contains("hwm-") && !l.contains("hwm-image-"))
            .collect();
        assert!(left.is_empty(), "volumes are left: {left:?}");
        for line in virsh(&["vol-list", pool]).lines() {
            if let Some(name) = line.split_whitespace().next().filter(|n| n.starts_with("hwm-")) {
                virsh(&["vol-delete", "--pool", pool, name]);
            }
        }
        virsh(&["pool-destroy", pool]);
        virsh(&["pool-delete", pool]);
        virsh(&["pool-undefine", pool]);
    }
}

/// Some of `all`, evenly, and others each time: HWM_TEST_ROTATION says which. All of it with HWM_TEST_FULL.
pub(crate) fn sampled<T: Clone>(all: &[T], wanted: usize) -> Vec<T> {
    if std::env::var_os("HWM_TEST_FULL").is_some() {
        return all.to_vec();
    }
    let rotation = std::env::var("HWM_TEST_ROTATION").map_or(0, |r| r.parse().expect("a number"));
    let step = all.len().div_ceil(wanted).max(1);
    all.iter().skip(rotation % step).step_by(step).cloned().collect()
}

pub(crate) fn guest_image(name: &str, path: &str, user: &str) -> String {
    format!(
        "[[image]]\nname = \"{name}\"\nformat = \"qcow2\"\nsource = \"file://{path}\"\nuser = \"{user}\"\n"
    )
}

pub(crate) fn call(generation: u64) -> Call {
    Call::new(generation, Duration::from_secs(120))
}

pub(crate) fn new_id() -> ResourceId {
    ResourceId::from_u128(uuid::Uuid::now_v7().as_u128())
}

/// The address of a machine, each test's another.
pub(crate) fn address() -> [u8; 4] {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let net: Vec<u8> = variable("HWM_TEST_BRIDGE_NET")
        .split('.')
        .map(|n| n.parse().unwrap())
        .collect();
    let n = (std::process::id() + NEXT.fetch_add(1, Ordering::Relaxed)) % 80;
    [net[0], net[1], net[2], 10 + u8::try_from(n).unwrap()]
}

pub(crate) fn workload() -> Workload {
    let address = address();
    let [a, b, c, _] = address;
    Workload {
        id: new_id(),
        name: "a test machine".into(),
        generation: 1,
        config: Config::Machine(MachineConfig {
            os_image: "debian-12".into(),
            vcpus: 1,
            ram: Bytes::from_mb(512),
            disk: Bytes::from_whole_gb(10),
            gpu_config: None,
            network_config: NetworkConfig {
                mode: NetworkKind::BridgeVlan,
                ip_mode: IpMode::Static,
                ip_address: Some(address.into()),
                netmask: Some([255, 255, 255, 0].into()),
                gateway: Some([a, b, c, 1].into()),
                vlan_id: None,
                dns: Vec::new(),
            },
            cloud_init: Some(CloudInit {
                hostname: Some("tiny".into()),
                ..CloudInit::default()
            }),
        }),
        ports: Vec::new(),
        grants: Vec::new(),
    }
}

pub(crate) fn config(workload: &mut Workload) -> &mut MachineConfig {
    match &mut workload.config {
        Config::Machine(config) => config,
        Config::Container(_) | Config::Inference(_) => panic!("no machine"),
    }
}

/// libvirt's own client, as a second opinion.
pub(crate) fn virsh(arguments: &[&str]) -> String {
    virsh_at(&variable("HWM_TEST_LIBVIRT_URI"), arguments)
}

pub(crate) fn virsh_at(uri: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new("virsh")
        .args(["-q", "-c", uri])
        .args(arguments)
        .output()
        .unwrap();
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
