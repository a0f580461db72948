//! Virtual machines over HTTP beside the same calls made raw with virt: lives, snapshots, the status and the figures
//! of a hundred, and the console's throughput.
//!
//! Needs a libvirt (`scripts/lab up libvirt`, `HWM_TEST_*`). `HWM_BENCH_CYCLES` (default 10) is how many machines are
//! made each way, `HWM_BENCH_DOMAINS` (default 100) how many run at once. Nothing boots in them: their disks are empty,
//! so that what is measured is hwm, libvirt and the start of QEMU.

mod lives;
mod many;
#[path = "../../hwm-libvirt/tests/real/proxy.rs"]
#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "a part of a test, used here to count"
)]
mod proxy;
mod raw;
mod rig;
mod screen;

use hwm_benches::Figure;

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for figure in runtime.block_on(figures())? {
        figure.print("libvirt");
    }
    Ok(())
}

async fn figures() -> Result<Vec<Figure>, Error> {
    let rig = rig::Rig::new().await?;
    let measured = async {
        let mut figures = lives::figures(&rig).await?;
        figures.push(screen::figure(&rig).await?);
        figures.extend(many::figures(&rig).await?);
        Ok(figures)
    };
    let figures: Result<Vec<Figure>, Error> = measured.await;
    rig.clean().await?;
    figures
}

/// A number in the environment.
fn number(name: &str, default: usize) -> usize {
    std::env::var(name)
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(default)
}
