//! What a name in a request means: a card by index, UUID or PCI address, or a MIG instance by UUID.

use super::Plan;
use crate::node::Owner;
use crate::sysfs::same_address;

/// A device, by its place in the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Device {
    Card(usize),
    /// A card and an instance on it.
    Instance(usize, usize),
}

impl Plan<'_> {
    /// The device of this name, or why there is none.
    pub(super) fn resolve(&self, name: &str) -> Result<Device, String> {
        let index = name.strip_prefix("GPU-").unwrap_or(name);
        let card = self.cards.iter().position(|v| {
            v.card.uuid == name || index == v.card.index.to_string() || same_address(name, &v.card.address)
        });
        if let Some(card) = card {
            return Ok(Device::Card(card));
        }
        for (at, view) in self.cards.iter().enumerate() {
            let Some(instance) = view
                .card
                .instances
                .iter()
                .position(|i| i.uuid.as_deref() == Some(name))
            else {
                continue;
            };
            if self.is_machine() {
                return Err(format!(
                    "{name} is a MIG instance, which has no PCI function to pass through: use mode mig with a profile"
                ));
            }
            return match view.card.instances[instance].owner {
                Owner::Ours(_) | Owner::Adopted => Ok(Device::Instance(at, instance)),
                Owner::Foreign => Err(format!(
                    "{name} is a MIG instance that hwm did not make: it is handed out only once the operator lets hwm \
                     adopt it"
                )),
            };
        }
        if let (true, Some(reason)) = (self.cards.is_empty(), &self.node.reason) {
            return Err(format!("this node has no GPU: {reason}"));
        }
        let known: Vec<String> = self.cards.iter().map(|v| v.card.label()).collect();
        Err(format!(
            "this node has no GPU {name}; it has {}",
            if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            }
        ))
    }
}
