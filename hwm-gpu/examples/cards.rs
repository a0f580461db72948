//! Looks at the node's GPUs, takes one for a machine, gives it back: what hwm would do, by hand.
//!
//! `cards STATE [--also ADDRESS]... [take N | give-back N | recover N] [--owner NUMBER]`
//!
//! STATE is a folder of its own, never a server's. Prints the cards, or the functions that a machine gets; ends with
//! 1 and the reason where that is refused.
#![allow(clippy::print_stdout, reason = "a command prints its answer")]

use std::process::ExitCode;
use std::time::Duration;

use hwm_core::accelerator::{Accelerators, Attachment, Placement, PlacementKind};
use hwm_core::backend::Call;
use hwm_core::config::{GpuRequest, ResourceType};
use hwm_core::id::ResourceId;
use hwm_gpu::{NvmlAccelerators, Options};

#[derive(Default)]
struct Arguments {
    state: String,
    also: Vec<String>,
    action: Option<(String, String)>,
    owner: u128,
}

fn read() -> Option<Arguments> {
    let mut words = std::env::args().skip(1);
    let mut arguments = Arguments {
        state: words.next()?,
        owner: 1,
        ..Arguments::default()
    };
    while let Some(word) = words.next() {
        let value = words.next()?;
        match word.as_str() {
            "--also" => arguments.also.push(value),
            "--owner" => arguments.owner = value.parse().ok()?,
            "take" | "give-back" | "recover" => arguments.action = Some((word, value)),
            _ => return None,
        }
    }
    Some(arguments)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Some(arguments) = read() else {
        eprintln!(
            "usage: cards STATE [--also ADDRESS]... [take N | give-back N | recover N] [--owner NUMBER]"
        );
        return ExitCode::from(2);
    };
    match run(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("refused: {why}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), String> {
    let mut options = Options::new(arguments.state);
    options.also = arguments.also;
    let gpus = NvmlAccelerators::open(options).await.map_err(|e| e.to_string())?;
    let inventory = gpus.inventory();
    let Some((action, index)) = arguments.action else {
        for (card, line) in inventory.cards.iter().zip(
            gpus.describe()
                .iter()
                .skip(usize::from(inventory.driver.is_some())),
        ) {
            println!(
                "{line}, {:?}{}",
                card.health,
                card.reason.iter().map(|r| format!(": {r}")).collect::<String>()
            );
        }
        return Ok(());
    };
    let card = inventory
        .cards
        .iter()
        .find(|c| c.index.to_string() == index)
        .ok_or("there is no such card")?;
    let (owner, call) = (
        ResourceId::from_u128(arguments.owner),
        Call::new(1, Duration::from_secs(10)),
    );
    let place = Placement {
        card: card.uuid.clone(),
        parts: card.parts.clone(),
        memory: card.memory,
        kind: PlacementKind::Whole,
    };
    match action.as_str() {
        "take" => {
            // The claims are the caller's: here only the plan's own refusals are asked for.
            let planned = gpus.plan(&GpuRequest::Named(vec![index]), ResourceType::VirtualMachine, &[]);
            planned.map_err(|refusal| format!("{refusal:?}"))?;
            let granted = gpus
                .prepare(&call, owner, &place, ResourceType::VirtualMachine)
                .await;
            if let Attachment::Vfio { functions } = granted.map_err(|e| e.to_string())?.attachment {
                println!("{}", functions.join(" "));
            }
        }
        "recover" => gpus.recover(&card.uuid).await.map_err(|e| e.to_string())?,
        _ => gpus
            .release(&call, owner, &place)
            .await
            .map_err(|e| e.to_string())?,
    }
    Ok(())
}
