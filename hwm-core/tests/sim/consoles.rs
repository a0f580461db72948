use std::sync::Arc;
use std::time::Duration;

use hwm_core::backend::{Backend, Call, ConsoleKind, ExecSession, Input, Output, Session, TerminalSize};
use hwm_core::id::ResourceId;
use hwm_core::testing::backend_suite::samples;
use hwm_core::testing::env::SimEnvironment;
use hwm_core::testing::sim::{Sim, SimOptions};

fn id() -> ResourceId {
    ResourceId::from_u128(7)
}

async fn machine() -> (Sim, Arc<dyn Backend>) {
    let sim = Sim::new(Arc::new(SimEnvironment::new(1)), SimOptions::default());
    let machines = sim.machines();
    let (call, workload) = (
        Call::new(1, Duration::from_secs(60)),
        samples::machine(id(), "debian-12"),
    );
    machines.create(&call, &workload).await.unwrap();
    machines.start(&call, &workload).await.unwrap();
    (sim, machines)
}

struct Wire {
    session: Session,
    read: Vec<u8>,
}

impl Wire {
    async fn take(&mut self, count: usize) -> Vec<u8> {
        while self.read.len() < count {
            match self.session.output.recv().await {
                Some(Ok(Output::Stdout(bytes))) => self.read.extend(bytes),
                other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&self.read)),
            }
        }
        self.read.drain(..count).collect()
    }

    async fn until(&mut self, text: &str) {
        let mut wanted = self.read.len();
        while !String::from_utf8_lossy(&self.read).contains(text) {
            wanted += 1;
            let read = self.take(wanted).await;
            self.read.splice(..0, read);
        }
        self.read.clear();
    }

    async fn send(&self, bytes: &[u8]) {
        self.session
            .input
            .send(Input::Data(bytes.to_vec()))
            .await
            .unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_viewer_that_does_not_know_the_password_is_refused() {
    let (_sim, machines) = machine().await;
    let console = machines.facets().console.unwrap();
    let session = console.open(id(), ConsoleKind::Vnc).await.unwrap();
    let mut wire = Wire {
        session,
        read: Vec::new(),
    };
    assert_eq!(wire.take(12).await, b"RFB 003.008\n");
    wire.send(b"RFB 003.008\n").await;
    assert_eq!(wire.take(2).await, [1, 2]);
    wire.send(&[2]).await;
    wire.take(16).await;
    wire.send(&[0; 16]).await;
    assert_eq!(wire.take(4).await, [0, 0, 0, 1]);
}

#[tokio::test(start_paused = true)]
async fn the_serial_console_logs_in_and_writes_files() {
    let (sim, machines) = machine().await;
    let console = machines.facets().console.unwrap();
    let session = console.open(id(), ConsoleKind::Serial).await.unwrap();
    let mut wire = Wire {
        session,
        read: Vec::new(),
    };
    wire.until("login: ").await;
    wire.send(b"root\r").await;
    wire.until("# ").await;
    wire.send(b"echo kept > /note\r").await;
    wire.until("\r\n# ").await;
    assert_eq!(sim.read_file(id(), "/note").as_deref(), Some("kept\n"));
    sim.kill_workload(id(), 0);
    while wire.session.output.recv().await.is_some() {}
}

#[tokio::test(start_paused = true)]
async fn a_terminal_has_a_size_and_an_interrupt() {
    let sim = Sim::new(Arc::new(SimEnvironment::new(1)), SimOptions::default());
    let containers = sim.containers();
    let (call, workload) = (
        Call::new(1, Duration::from_secs(60)),
        samples::container(id(), &[]),
    );
    containers.create(&call, &workload).await.unwrap();
    containers.start(&call, &workload).await.unwrap();
    let request = ExecSession {
        command: vec!["sh".into()],
        tty: true,
        size: Some(TerminalSize {
            width: 100,
            height: 30,
        }),
    };
    let exec = containers.facets().exec.unwrap();
    let session = exec.open(id(), request).await.unwrap();
    let mut wire = Wire {
        session,
        read: Vec::new(),
    };
    wire.send(b"stty size\r").await;
    wire.until("30 100\r\n").await;
    let size = TerminalSize {
        width: 120,
        height: 40,
    };
    wire.session.input.send(Input::Resize(size)).await.unwrap();
    wire.send(b"stty size\r").await;
    wire.until("40 120\r\n").await;
    wire.send(b"sleep infinity\r").await;
    wire.until("infinity\r\n").await;
    wire.send(&[3]).await;
    wire.until("^C").await;
    wire.send(b"exit 9\r").await;
    loop {
        match wire.session.output.recv().await {
            Some(Ok(Output::Exit(code))) => break assert_eq!(code, 9),
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}
