//! The rules of image names, tags and references.

use oci_spec::distribution::Reference;

use super::limits;
use super::reader::Field;
use crate::config::{Config, Registry};

const GHCR: &str = "ghcr.io";
const DOCKER_HUB: &str = "docker.io";

/// An image without tag, as its registry has it.
pub(super) fn name(field: &Field<'_>, registry: Option<Registry>) -> Option<String> {
    let name = field.text_that_is("an image name without tag, such as nginx")?;
    if name.contains('@') {
        return field.refuse("must not contain a digest: put it into imageTag");
    }
    if name.rsplit('/').next().is_some_and(|last| last.contains(':')) {
        return field.refuse("must not contain a tag: put it into imageTag");
    }
    let reference = parse(field, name)?;
    let host = explicit_host(name);
    let fits = match registry {
        None => Ok(()),
        Some(Registry::DockerHub) if reference.registry() == DOCKER_HUB => Ok(()),
        Some(Registry::DockerHub) => {
            Err("names another registry than Docker Hub: remove the host, or set registry to \"private\"")
        }
        Some(Registry::Ghcr) => match host {
            None | Some(GHCR) if reference.repository().contains('/') && name.contains('/') => Ok(()),
            None | Some(GHCR) => Err("must be owner/name or ghcr.io/owner/name"),
            Some(_) => Err("names another registry than ghcr.io: set registry to \"private\""),
        },
        Some(Registry::Private) if host.is_some() => Ok(()),
        Some(Registry::Private) => Err(
            "must be host[:port]/path with a host that has a dot or a port, or is localhost, such as \
             registry.example.com/team/app",
        ),
    };
    match fits {
        Ok(()) => Some(name.to_owned()),
        Err(message) => field.refuse(message),
    }
}

/// A tag or a digest.
pub(super) fn tag(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    let valid = match text.split_once(':') {
        Some((algorithm, hex)) => algorithm == "sha256" && hex.len() == 64 && hex.bytes().all(is_hex),
        None => {
            let mut bytes = text.bytes();
            let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            text.len() <= 128
                && bytes.next().is_some_and(word)
                && bytes.all(|b| word(b) || b == b'.' || b == b'-')
        }
    };
    if !valid {
        return field.refuse(
            "must be a tag of 1 to 128 letters, digits, '_', '.' and '-', not beginning with '.' or '-', or \
             a digest: sha256: and 64 lowercase hexadecimal digits",
        );
    }
    Some(text.to_owned())
}

/// A full reference: perhaps a host, a name, perhaps a tag, perhaps a digest.
pub(super) fn reference(field: &Field<'_>) -> Option<String> {
    let text = field.text_that_is("an image reference such as vllm/vllm-openai:v0.8.0")?;
    parse(field, text)?;
    Some(text.to_owned())
}

/// The registry that an image comes from, as far as credentials are concerned.
pub(super) fn registry_host(registry: Registry, name: &str) -> String {
    match registry {
        Registry::DockerHub => DOCKER_HUB.to_owned(),
        Registry::Ghcr => GHCR.to_owned(),
        Registry::Private => explicit_host(name).unwrap_or_default().to_ascii_lowercase(),
    }
}

/// The same for a full reference.
pub(super) fn reference_host(reference: &str) -> String {
    Reference::try_from(reference).map_or_else(|_| String::new(), |r| r.registry().to_ascii_lowercase())
}

/// The same for a config; none for a machine.
pub(super) fn config_host(config: &Config) -> Option<String> {
    match config {
        Config::Machine(_) => None,
        Config::Container(c) => Some(registry_host(c.registry, &c.image_name)),
        Config::Inference(c) => Some(reference_host(&c.docker_image)),
    }
}

fn parse(field: &Field<'_>, text: &str) -> Option<Reference> {
    let length = text.chars().count();
    if !limits::IMAGE.contains(&length) {
        let (least, most) = (limits::IMAGE.start(), limits::IMAGE.end());
        return field.refuse(format!("must have between {least} and {most} characters"));
    }
    // The parser also takes letters and digits of other scripts in a tag, and capitals in a digest.
    let digest = text.split_once('@').map(|(_, digest)| digest);
    let digest = digest.and_then(|d| d.split_once(':'));
    let lowercase = digest.is_none_or(|(_, hex)| hex.bytes().all(is_hex));
    let port = explicit_host(text).and_then(|host| host.split_once(':'));
    let port = port.is_none_or(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0));
    // It also takes capitals in a first component that turns out to be no host.
    let plain = |reference: &Reference| !reference.repository().bytes().any(|b| b.is_ascii_uppercase());
    match Reference::try_from(text) {
        Ok(reference) if text.is_ascii() && lowercase && port && plain(&reference) => Some(reference),
        Ok(_) if !port => field.refuse("must have a port between 1 and 65535 after its host"),
        Ok(_) | Err(_) => field.refuse(
            "must be a valid image reference: components of lowercase letters, digits and single '.', '_' \
             or '-' between them, separated by '/'",
        ),
    }
}

/// The host in front of the first slash, told from a path component as Docker does.
fn explicit_host(text: &str) -> Option<&str> {
    let (first, _) = text.split_once('/')?;
    (first.contains(['.', ':']) || first == "localhost").then_some(first)
}

fn is_hex(byte: u8) -> bool {
    byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)
}
