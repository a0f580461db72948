//! How large a request may be. They keep a record, an event and a list page bounded, and stay far above
//! what workloads need; where another system draws the line, that is said.

use std::ops::RangeInclusive;

/// Characters of a name.
pub const NAME: RangeInclusive<usize> = 1..=100;
/// Characters of a description.
pub const DESCRIPTION: RangeInclusive<usize> = 0..=500;
/// Characters of a short text that names something: an id, a user, a device.
pub const LABEL: RangeInclusive<usize> = 1..=253;
/// Entries of metadata.
pub const METADATA_ENTRIES: usize = 64;
/// Characters of a metadata key.
pub const METADATA_KEY: RangeInclusive<usize> = 1..=128;
/// Bytes of a metadata value.
pub const METADATA_VALUE: RangeInclusive<usize> = 0..=4096;

/// Memory of a machine in MB; 64 TiB, beyond any host.
pub const RAM_MB: RangeInclusive<u64> = 512..=67_108_864;
/// Disk of a machine in GB; 1 PiB, beyond any pool.
pub const DISK_GB: RangeInclusive<u64> = 10..=1_048_576;
/// Name servers of a machine.
pub const NAME_SERVERS: usize = 8;
/// Bytes of a public key; a 16,384-bit RSA key has 2,800.
pub const PUBLIC_KEY: usize = 8192;
/// Characters of a guest's password; Windows takes no more than 127.
pub const PASSWORD: RangeInclusive<usize> = 1..=127;

/// CPU limit of a container in cores. Below a thousandth, engines take a limit for none.
pub const CPU_CORES: RangeInclusive<f64> = 0.001..=4096.0;
/// Memory limit of a container in GB. Below a thousandth (1 MB) nothing starts; the top is 64 TiB.
pub const RAM_GB: RangeInclusive<f64> = 0.001..=65_536.0;
/// Size of /dev/shm in MB; at most the memory of a machine.
pub const SHM_MB: RangeInclusive<u32> = 1..=67_108_864;
/// GPU memory limit in MB; 16 TiB, beyond any card.
pub const GPU_MEMORY_MB: RangeInclusive<u64> = 1..=16_777_216;
/// GPUs of a workload.
pub const GPUS: usize = 64;
/// Published ports of a container.
pub const PORTS: usize = 256;
/// Volumes of a container.
pub const VOLUMES: usize = 64;
/// Characters of a path; Linux takes no more than 4,095 bytes.
pub const PATH: usize = 4095;
/// Characters of a URL.
pub const URL: usize = 4096;
/// Characters of an image reference: 255 of name, a host, a tag, a digest.
pub const IMAGE: RangeInclusive<usize> = 1..=700;
/// Characters of a registry's user name.
pub const REGISTRY_USER: RangeInclusive<usize> = 1..=256;
/// Characters of a registry's password or token; some registries use long signed tokens.
pub const REGISTRY_SECRET: RangeInclusive<usize> = 1..=16_384;
/// Environment variables of a container.
pub const VARIABLES: usize = 1024;
/// Characters of the name of an environment variable.
pub const VARIABLE_NAME: RangeInclusive<usize> = 1..=256;
/// Items of a command, and of its arguments.
pub const ARGUMENTS: usize = 1024;
/// Bytes of one argument, or of `NAME=value`; Linux takes 131,072 with the NUL at the end.
pub const ARGUMENT: usize = 131_071;
/// Bytes of a whole environment, of a command, and of its arguments.
pub const ARGUMENTS_TOTAL: usize = 262_144;
/// Seconds between two health checks.
pub const HEALTH_INTERVAL: RangeInclusive<u32> = 1..=3600;
/// Seconds until the first successful health check; a day, as large models load slowly.
pub const HEALTH_DEADLINE: RangeInclusive<u32> = 1..=86_400;

/// Seconds of grace at a stop.
pub const GRACE: RangeInclusive<u32> = 0..=3600;
/// Seconds that a command may take.
pub const EXEC_TIMEOUT: RangeInclusive<u64> = 1..=3600;
/// Seconds that a command may take when the client does not say.
pub const EXEC_TIMEOUT_DEFAULT: u64 = 60;
/// Bytes that are kept of each output of a command.
pub const EXEC_OUTPUT: usize = 1 << 20;

/// Violations that one answer names; the rest is counted.
pub(super) const VIOLATIONS: usize = 500;
