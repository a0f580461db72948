//! The rules of asking for GPUs. Which names a node has, only its accelerators know.

use std::ops::RangeInclusive;

use super::limits;
use super::object::Object;
use super::reader::Field;
use crate::config::{ContainerGpuConfig, ContainerGpuMode, MachineGpuConfig, MachineGpuMode};

const MACHINE_MODES: [(&str, MachineGpuMode); 2] = [
    ("passthrough", MachineGpuMode::Passthrough),
    ("mig", MachineGpuMode::Mig),
];
const CONTAINER_MODES: [(&str, ContainerGpuMode); 2] =
    [("whole", ContainerGpuMode::Whole), ("mig", ContainerGpuMode::Mig)];
const COUNT: RangeInclusive<u32> = 1..=limits::GPUS as u32;

/// `gpuConfig` of a machine. One that is not enabled may keep the rest for later.
pub(super) fn machine(field: &Field<'_>) -> Option<MachineGpuConfig> {
    let fields = field.object()?;
    let enabled = fields.required("enabled", Field::boolean);
    let mode = mode(&fields, enabled, &MACHINE_MODES, MachineGpuMode::Passthrough);
    let device_ids = fields.optional("deviceIds", devices);
    let mig_profile = fields.optional("migProfile", profile);
    if enabled == Some(true) {
        match mode {
            Some(MachineGpuMode::Passthrough) => {
                if !fields.has("deviceIds") || fields.is_empty_array("deviceIds") {
                    fields.broken(
                        "deviceIds",
                        "is required with mode \"passthrough\": name at least one GPU",
                    );
                }
                fields.absent(
                    "migProfile",
                    "has no meaning with mode \"passthrough\": remove it, or set mode to \"mig\"",
                );
            }
            Some(MachineGpuMode::Mig) => {
                slice(&fields);
                if fields.has("deviceIds") && !fields.is_empty_array("deviceIds") {
                    fields.broken(
                        "deviceIds",
                        "has no meaning with mode \"mig\", where the node chooses the card: remove it",
                    );
                }
            }
            None => {}
        }
    }
    fields.finish();
    Some(MachineGpuConfig {
        enabled: enabled?,
        mode: mode?,
        device_ids: device_ids.unwrap_or_default(),
        mig_profile,
    })
}

/// The GPUs of a container: by name, or by `gpuConfig` chosen by the node, but not both.
pub(super) fn container(fields: &Object<'_>) -> (Vec<String>, Option<ContainerGpuConfig>) {
    let names = fields.optional("gpuDeviceIds", devices).unwrap_or_default();
    let config = fields.optional("gpuConfig", chosen);
    if !names.is_empty() && config.as_ref().is_some_and(|c| c.enabled) {
        fields.broken(
            "gpuConfig",
            "must not be enabled beside gpuDeviceIds: remove one of the two (in a PATCH with null)",
        );
    }
    (names, config)
}

/// The GPUs of an inference container, which cannot do without.
pub(super) fn inference(fields: &Object<'_>) -> (Vec<String>, Option<ContainerGpuConfig>) {
    let (names, config) = container(fields);
    // Where either is given and wrong, its own violation says enough.
    let named = fields.has("gpuDeviceIds") && !fields.is_empty_array("gpuDeviceIds");
    let chosen = match &config {
        Some(config) => config.enabled,
        None => fields.has("gpuConfig"),
    };
    if !named && !chosen {
        fields.broken(
            "gpuDeviceIds",
            "is required: name at least one GPU, or enable gpuConfig and the node chooses",
        );
    }
    (names, config)
}

fn chosen(field: &Field<'_>) -> Option<ContainerGpuConfig> {
    let fields = field.object()?;
    let enabled = fields.required("enabled", Field::boolean);
    let mode = mode(&fields, enabled, &CONTAINER_MODES, ContainerGpuMode::Whole);
    let count = fields.optional("count", |f| f.integer(COUNT));
    let mig_profile = fields.optional("migProfile", profile);
    if enabled == Some(true) {
        match mode {
            Some(ContainerGpuMode::Whole) => fields.absent(
                "migProfile",
                "has no meaning with mode \"whole\": remove it, or set mode to \"mig\"",
            ),
            Some(ContainerGpuMode::Mig) => {
                slice(&fields);
                fields.absent(
                    "count",
                    "has no meaning with mode \"mig\", which is one slice: remove it, or set mode to \"whole\"",
                );
            }
            None => {}
        }
    }
    fields.finish();
    Some(ContainerGpuConfig {
        enabled: enabled?,
        mode: mode?,
        count,
        mig_profile,
    })
}

/// The mode, which only matters, and so is only required, where GPUs are enabled.
fn mode<T: Copy>(fields: &Object<'_>, enabled: Option<bool>, modes: &[(&str, T)], unused: T) -> Option<T> {
    if enabled == Some(false) && !fields.has("mode") {
        fields.field("mode");
        return Some(unused);
    }
    fields.required("mode", |f| f.word(modes))
}

fn slice(fields: &Object<'_>) {
    if !fields.has("migProfile") {
        fields.broken(
            "migProfile",
            "is required with mode \"mig\": a MIG profile such as 1g.5gb",
        );
    }
}

/// Names of GPUs. An index may be written `0` or `GPU-0`, and case does not matter in the rest.
fn devices(field: &Field<'_>) -> Option<Vec<String>> {
    let names = field.items(limits::GPUS, device)?;
    field.distinct(&names, "", |name| {
        let name = name.to_ascii_lowercase();
        let index = name
            .strip_prefix("gpu-")
            .and_then(|rest| rest.parse::<u32>().ok());
        let index = index.or_else(|| name.parse().ok());
        Some(index.map_or(name, |index| index.to_string()))
    });
    Some(names.into_iter().flatten().collect())
}

fn device(field: &Field<'_>) -> Option<String> {
    let name = field.text_that_is("the name of a GPU")?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b':' | b'.' | b'/');
    if name.is_empty() || name.len() > 128 || !name.bytes().all(plain) {
        return field
            .refuse("must be the index, UUID or PCI address of a GPU, or the UUID of a MIG instance");
    }
    Some(name.to_owned())
}

/// The shape of a profile: `1g.5gb`, `1g`, `1g.24gb+me.all`, `1g.24gb-me`. Which ones a card has, it says.
fn profile(field: &Field<'_>) -> Option<String> {
    let text = field.text_that_is("a MIG profile such as 1g.5gb")?;
    if !is_profile(text) {
        return field.refuse("must be a MIG profile such as 1g.5gb, 1g.10gb+me or 2g");
    }
    Some(text.to_owned())
}

fn is_profile(text: &str) -> bool {
    let (sizes, attributes) = match text.find(['+', '-']) {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, "all"),
    };
    let (compute, memory) = match sizes.split_once('.') {
        Some((compute, memory)) => (compute, memory.strip_suffix("gb")),
        None => (sizes, Some("1")),
    };
    let number = |n: &str| (1..=4).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit());
    let attribute = |a: &str| !a.is_empty() && a.bytes().all(|b| b.is_ascii_lowercase());
    compute.strip_suffix('g').is_some_and(number)
        && memory.is_some_and(number)
        && attributes.len() <= 32
        && attributes.split('.').all(attribute)
}

#[cfg(test)]
mod tests {
    use super::is_profile;

    #[test]
    fn profiles_of_every_known_card_have_the_shape() {
        for profile in [
            "1g.5gb",
            "1g.5gb+me",
            "1g.10gb",
            "7g.141gb",
            "1g.24gb+gfx",
            "1g.24gb+me.all",
            "1g.24gb-me",
            "2g",
        ] {
            assert!(is_profile(profile), "{profile}");
        }
        for text in [
            "",
            "g",
            "1",
            "1g.",
            "1g.gb",
            "1g.5GB",
            "1g.5gb+",
            "1g.5gb+me.",
            "g.5gb",
            "1g 5gb",
            "1g.5gb\n",
            "99999g",
            "1g.5gb+ME",
            "MIG 1g.5gb",
            "1g.5gb;rm",
        ] {
            assert!(!is_profile(text), "{text:?}");
        }
    }
}
