//! Every flag and its environment variable.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use hwm_core::access::Role;
use hwm_gpu::boards::{SimulatedCard, parse_cards};

/// Runs containers and virtual machines on this host, and serves the API for them.
#[derive(Debug, Parser)]
#[command(
    name = "server",
    version,
    args_conflicts_with_subcommands = true,
    args_override_self = true,
    after_help = "HWM_JWT_SECRET or JWT_SECRET hold the shared secret itself. HWM_LOG chooses what is logged (info)."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) serve: Serve,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Prints a token, signed with the shared secret of the data directory or of the environment
    Token(TokenRequest),
    /// Looks after the images that machines are made from
    Images(ImagesRequest),
}

/// What to do with images.
#[derive(Debug, Args)]
pub(crate) struct ImagesRequest {
    #[command(subcommand)]
    pub(crate) action: ImagesAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImagesAction {
    /// Lists the images that are stored, and what they serve
    List {
        #[command(flatten)]
        at: ImagesPlace,
    },
    /// Fetches images ahead of their first use; a download that was cut off is taken up again
    Pull {
        /// Their names in the catalogue
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        at: ImagesPlace,
    },
    /// Removes what no disk is made from and is not current: the catalogue has another version of it, or none
    Prune {
        /// Also what is current: it is fetched again when it is needed
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        at: ImagesPlace,
    },
}

/// Whose images, and where.
#[derive(Debug, Args)]
pub(crate) struct ImagesPlace {
    #[command(flatten)]
    pub(crate) images: Images,
    /// The node's id [default: the one kept in the data directory]
    #[arg(long, env = "HWM_NODE_ID", value_name = "ID")]
    pub(crate) node_id: Option<String>,
}

/// Whom the token is for.
#[derive(Debug, Args)]
pub(crate) struct TokenRequest {
    /// scope.kind: universe, organization, group or member; owner, editor or viewer (repeatable)
    #[arg(long = "role", value_name = "ROLE", required = true)]
    pub(crate) roles: Vec<Role>,
    /// The organization
    #[arg(long, default_value = "")]
    pub(crate) org: String,
    /// The group inside it
    #[arg(long, default_value = "")]
    pub(crate) group: String,
    /// The user
    #[arg(long, default_value = "admin")]
    pub(crate) user: String,
    /// The agent that acts for the user
    #[arg(long, default_value = "")]
    pub(crate) agent: String,
    /// The application
    #[arg(long, default_value = "")]
    pub(crate) app: String,
    /// For how many hours it is good
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=87_600))]
    pub(crate) hours: u32,
}

/// How to serve.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Where to listen
    #[arg(
        long,
        env = "HWM_LISTEN",
        default_value = "127.0.0.1:3003",
        value_name = "HOST:PORT"
    )]
    pub(crate) listen: String,
    /// Where everything is kept; one server per directory
    #[arg(
        long,
        env = "HWM_DATA_DIR",
        default_value = "./hwm-data",
        value_name = "DIR",
        global = true
    )]
    pub(crate) data_dir: PathBuf,
    /// The node's id [default: made at the first start, then kept]
    #[arg(long, env = "HWM_NODE_ID", value_name = "ID")]
    pub(crate) node_id: Option<String>,
    /// What runs containers; auto is docker where it answers, else none
    #[arg(long, env = "HWM_CONTAINERS", default_value = "auto")]
    pub(crate) containers: Containers,
    /// What runs virtual machines; auto is libvirt where it answers, else none
    #[arg(long, env = "HWM_MACHINES", default_value = "auto")]
    pub(crate) machines: Machines,
    /// auto, nvml, none, or a simulated set such as sim:a100-40gb*2,a30+mig
    #[arg(long, env = "HWM_GPUS", default_value = "auto", value_name = "GPUS")]
    pub(crate) gpus: Gpus,
    /// Switch MIG on where a slice is wanted and the card does so without a reset
    #[arg(long, env = "HWM_GPU_SWITCH_MIG", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    pub(crate) gpu_switch_mig: bool,
    /// A MIG instance that others made and that may be handed out, by UUID, or all of them (repeatable)
    #[arg(
        long = "gpu-adopt",
        env = "HWM_GPU_ADOPT",
        value_delimiter = ',',
        value_name = "UUID|all"
    )]
    pub(crate) gpu_adopt: Vec<String>,
    /// The PCI address of a device, beyond NVIDIA's, that machines may be given (repeatable)
    #[arg(
        long = "gpu-device",
        env = "HWM_GPU_DEVICES",
        value_delimiter = ',',
        value_name = "ADDRESS"
    )]
    pub(crate) gpu_devices: Vec<String>,
    /// How long a stopped resource keeps its GPUs: keep, release, or a number of seconds
    #[arg(
        long,
        env = "HWM_GPU_HOLD",
        default_value = "keep",
        value_name = "KEEP|RELEASE|SECONDS"
    )]
    pub(crate) gpu_hold: GpuHold,
    /// The container engine's address [default: the local socket]
    #[arg(long, env = "DOCKER_HOST", value_name = "URL")]
    pub(crate) docker_host: Option<String>,
    #[command(flatten)]
    pub(crate) images: Images,
    /// How machines are virtualised; auto is kvm where it is proved to work, else qemu
    #[arg(long, env = "HWM_DOMAIN_TYPE", default_value = "auto")]
    pub(crate) domain_type: DomainType,
    /// The bridge that machines are on
    #[arg(long, env = "HWM_BRIDGE", default_value = "br0")]
    pub(crate) bridge: String,
    /// The bridge of a VLAN, where there is one per VLAN [default: {bridge}.{vlan}]
    #[arg(long, env = "HWM_VLAN_BRIDGE", value_name = "PATTERN")]
    pub(crate) vlan_bridge: Option<String>,
    /// Let a guest that takes no other (Windows) read its password in clear text until it has booted
    #[arg(long, env = "HWM_CLEAR_PASSWORD", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    pub(crate) clear_password: bool,
    /// A folder under which containers may mount folders (repeatable) [default: DATA_DIR/volumes]
    #[arg(
        long = "volume-root",
        env = "HWM_VOLUME_ROOTS",
        value_delimiter = ',',
        value_name = "DIR"
    )]
    pub(crate) volume_roots: Vec<PathBuf>,
    /// A folder under which models may be (repeatable) [default: DATA_DIR/models]
    #[arg(
        long = "model-root",
        env = "HWM_MODEL_ROOTS",
        value_delimiter = ',',
        value_name = "DIR"
    )]
    pub(crate) model_roots: Vec<PathBuf>,
    /// A prefix of URLs that models may come from (repeatable) [default: s3:// and https://, public addresses only]
    #[arg(
        long = "model-source",
        env = "HWM_MODEL_SOURCES",
        value_delimiter = ',',
        value_name = "URL"
    )]
    pub(crate) model_sources: Vec<String>,
    #[command(flatten)]
    pub(crate) keys: Keys,
    /// The certificate chain to serve HTTPS with, PEM
    #[arg(long, env = "HWM_TLS_CERT", requires = "tls_key", value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, env = "HWM_TLS_KEY", requires = "tls_cert", value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
    /// The address under which clients reach the server, for example behind a proxy [default: as they say it]
    #[arg(long, env = "HWM_PUBLIC_URL", value_name = "URL")]
    pub(crate) public_url: Option<String>,
    /// An origin whose pages may call the API and open WebSockets, or * for all to call it (repeatable)
    #[arg(
        long = "cors-origin",
        env = "HWM_CORS_ORIGINS",
        value_delimiter = ',',
        value_name = "ORIGIN"
    )]
    pub(crate) cors_origins: Vec<String>,
    /// How many requests a second one caller may make; 0 is without limit
    #[arg(long, env = "HWM_CALLER_RATE", default_value_t = 500, value_name = "N")]
    pub(crate) caller_rate: u32,
    /// How clients reach the ports of containers: a name or address of this host [default: 127.0.0.1]
    #[arg(long, env = "HWM_ADVERTISE", value_name = "HOST")]
    pub(crate) advertise: Option<String>,
    /// Let containers use the host's network
    #[arg(long, env = "HWM_HOST_NETWORK", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    pub(crate) host_network: bool,
    /// Simulated backends and the ten demo resources
    #[arg(long, env = "HWM_DEMO", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    pub(crate) demo: bool,
}

/// Where the images of machines come from, and where they are kept.
#[derive(Debug, Args)]
pub(crate) struct Images {
    /// The hypervisor's address
    #[arg(
        long,
        env = "HWM_LIBVIRT_URI",
        default_value = "qemu:///system",
        value_name = "URI"
    )]
    pub(crate) libvirt_uri: String,
    /// The catalogue of operating system images [default: the built-in one]
    #[arg(long, env = "HWM_IMAGE_CATALOG", value_name = "FILE")]
    pub(crate) image_catalog: Option<PathBuf>,
    /// The storage pool for images and disks; made where it is missing
    #[arg(long, env = "HWM_POOL", default_value = "hwm", value_name = "NAME")]
    pub(crate) pool: String,
    /// Where a pool that is missing is made, on the hypervisor's host [default: /var/lib/libvirt/images/POOL]
    #[arg(long, env = "HWM_POOL_PATH", value_name = "DIR")]
    pub(crate) pool_path: Option<String>,
}

/// Whose tokens are accepted.
#[derive(Debug, Args)]
pub(crate) struct Keys {
    /// The file with the shared secret [default: HWM_JWT_SECRET, JWT_SECRET, else one made in the data directory]
    #[arg(long, env = "HWM_JWT_SECRET_FILE", value_name = "FILE", global = true)]
    pub(crate) jwt_secret_file: Option<PathBuf>,
    /// A file with public keys (JWKS); then no secret is made
    #[arg(long, env = "HWM_JWKS", value_name = "FILE", global = true)]
    pub(crate) jwks: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Containers {
    Auto,
    Docker,
    Sim,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Machines {
    Auto,
    Libvirt,
    Sim,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DomainType {
    Auto,
    Kvm,
    Qemu,
}

/// How long a stopped resource keeps its GPUs; none is for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GpuHold(pub(crate) Option<Duration>);

impl FromStr for GpuHold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "keep" => Ok(Self(None)),
            "release" => Ok(Self(Some(Duration::ZERO))),
            seconds => match seconds.parse() {
                Ok(seconds) => Ok(Self(Some(Duration::from_secs(seconds)))),
                Err(_) => Err("expected keep, release or a number of seconds".to_owned()),
            },
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Gpus {
    Auto,
    Nvml,
    None,
    Sim(Vec<SimulatedCard>),
}

impl FromStr for Gpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "nvml" => Ok(Self::Nvml),
            "none" => Ok(Self::None),
            cards if cards.starts_with("sim:") => {
                parse_cards(cards).map(Self::Sim).map_err(|e| e.to_string())
            }
            _ => Err("expected auto, nvml, none or sim:BOARD[+mig][*COUNT],…".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_the_server_has_a_variable() {
        let command = Cli::command();
        for flag in command.get_arguments().filter(|a| a.get_long().is_some()) {
            let name = flag.get_long().unwrap();
            assert!(
                flag.get_env().is_some() || ["help", "version"].contains(&name),
                "{name}"
            );
        }
    }

    #[test]
    fn gpus_are_read_as_the_contract_writes_them() {
        for good in [
            "auto",
            "nvml",
            "none",
            "sim:a100-40gb*2,a30*1",
            "sim:a100-40gb+mig*2",
        ] {
            assert!(good.parse::<Gpus>().is_ok(), "{good}");
        }
        for bad in ["", "sim", "sim:", "sim:voodoo", "amd"] {
            assert!(bad.parse::<Gpus>().is_err(), "{bad}");
        }
    }

    #[test]
    fn how_long_gpus_are_kept_is_a_word_or_a_number() {
        let read = |text: &str| text.parse::<GpuHold>().map(|hold| hold.0);
        assert_eq!(read("keep"), Ok(None));
        assert_eq!(read("release"), Ok(Some(Duration::ZERO)));
        assert_eq!(read("90"), Ok(Some(Duration::from_secs(90))));
        assert!(read("-1").is_err() && read("soon").is_err());
    }

    #[test]
    fn a_token_needs_a_role_that_exists() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["server", "token"], args].concat());
        assert!(parse(&["--role", "group.editor", "--org", "o", "--user", "u"]).is_ok());
        assert!(parse(&["--org", "o"]).is_err());
        assert!(parse(&["--role", "group.boss"]).is_err());
        assert!(parse(&["--role", "group.editor", "--data-dir", "elsewhere"]).is_ok());
    }

    #[test]
    fn a_certificate_needs_its_key() {
        assert!(Cli::try_parse_from(["server", "--tls-cert", "c.pem"]).is_err());
        assert!(Cli::try_parse_from(["server", "--tls-cert", "c.pem", "--tls-key", "k.pem"]).is_ok());
    }
}
