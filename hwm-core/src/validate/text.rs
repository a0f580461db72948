//! Rules for texts. Lengths that people see count characters; lengths that the kernel sees count bytes.

use std::ops::RangeInclusive;

use super::limits;
use super::reader::Field;

/// A text on one line that shows something: of so many characters, none of them a control character.
pub(super) fn line(field: &Field<'_>, length: RangeInclusive<usize>) -> Option<String> {
    let text = field.text()?;
    let whole = counted(field, text.chars().count(), &length, "characters");
    if text.chars().any(breaks_line) {
        return field.refuse("must not contain control characters or line breaks");
    }
    whole?;
    if *length.start() > 0 && text.trim().is_empty() {
        return field.refuse("must not be blank");
    }
    Some(text.to_owned())
}

/// A text of several lines.
pub(super) fn prose(field: &Field<'_>, length: RangeInclusive<usize>) -> Option<String> {
    let text = field.text()?;
    let whole = counted(field, text.chars().count(), &length, "characters");
    if text
        .chars()
        .any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
    {
        return field.refuse("must not contain control characters other than tabs and line breaks");
    }
    whole?;
    Some(text.to_owned())
}

/// A text that only stores and programs see. NUL ends a text in C, and PostgreSQL cannot keep it.
pub(super) fn raw(field: &Field<'_>, length: RangeInclusive<usize>) -> Option<String> {
    let text = field.text()?;
    let whole = counted(field, text.len(), &length, "bytes");
    if text.contains('\0') {
        return field.refuse("must not contain NUL");
    }
    whole?;
    Some(text.to_owned())
}

/// A name for machines, such as an id: printable ASCII without spaces.
pub(super) fn token(field: &Field<'_>, length: RangeInclusive<usize>) -> Option<String> {
    let text = field.text()?;
    let whole = counted(field, text.chars().count(), &length, "characters");
    if !text.chars().all(|c| c.is_ascii_graphic()) {
        return field.refuse("must be printable ASCII without spaces");
    }
    whole?;
    Some(text.to_owned())
}

/// An RFC 1123 host name that is no IP address.
pub(super) fn hostname(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() > 253 || !text.split('.').all(label) {
        return field.refuse(
            "must be a host name (RFC 1123): labels of 1 to 63 letters, digits and inner hyphens, separated \
             by dots, at most 253 characters in all",
        );
    }
    if text.parse::<std::net::Ipv4Addr>().is_ok() {
        return field.refuse("must be a name, not an IP address");
    }
    Some(text.to_owned())
}

/// The name of a guest's user: what Linux and Windows both take, and no shell reads otherwise.
pub(super) fn username(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    let mut bytes = text.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    let rest = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    if !first || !rest || text.len() > 32 || text.ends_with('.') {
        return field.refuse(
            "must be a user name: 1 to 32 letters, digits, '_', '-' and inner '.', not beginning with a \
             digit, '-' or '.'",
        );
    }
    Some(text.to_owned())
}

/// One public key in OpenSSH's format. White space around it, as files have it, is cut off.
pub(super) fn public_key(field: &Field<'_>) -> Option<String> {
    let text = field.text()?.trim();
    if text.len() > limits::PUBLIC_KEY {
        return field.refuse(format!("must have at most {} bytes", limits::PUBLIC_KEY));
    }
    // The parser takes a newline in the comment, which would be another line of authorized_keys.
    if text.chars().any(breaks_line) {
        return field.refuse("must be one key on one line, without control characters");
    }
    let known = |key: &ssh_key::PublicKey| !matches!(key.algorithm(), ssh_key::Algorithm::Other(_));
    match ssh_key::PublicKey::from_openssh(text) {
        Ok(key) if known(&key) => Some(text.to_owned()),
        _ => field.refuse(
            "must be a public key in OpenSSH format, as in an id_ed25519.pub: type, base64 and perhaps a \
             comment, without options",
        ),
    }
}

/// A password or a token: anything on one line.
pub(super) fn credential(field: &Field<'_>, length: RangeInclusive<usize>) -> Option<String> {
    let text = field.text()?;
    let whole = counted(field, text.chars().count(), &length, "characters");
    if text.chars().any(breaks_line) {
        return field.refuse("must not contain control characters or line breaks");
    }
    whole?;
    Some(text.to_owned())
}

/// The path and query of an HTTP request.
pub(super) fn http_path(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    if !text.starts_with('/') || text.starts_with("//") {
        return field.refuse("must begin with one \"/\", as in /health");
    }
    if text.len() > limits::URL {
        return field.refuse(format!("must have at most {} characters", limits::URL));
    }
    if !text
        .bytes()
        .all(|b| b.is_ascii_graphic() && b != b'#' && b != b'\\')
    {
        return field
            .refuse("must be printable ASCII without spaces, '#' and '\\': percent-encode everything else");
    }
    Some(text.to_owned())
}

/// An absolute path that only a container reads.
pub(super) fn absolute(field: &Field<'_>, most: usize) -> Option<String> {
    let text = raw(field, 1..=most)?;
    if !text.starts_with('/') {
        return field.refuse("must be an absolute path: it begins with \"/\"");
    }
    Some(text)
}

/// Reports a length that is out of range.
fn counted(field: &Field<'_>, length: usize, range: &RangeInclusive<usize>, unit: &str) -> Option<()> {
    if range.contains(&length) {
        return Some(());
    }
    match (*range.start(), *range.end()) {
        (0, most) => field.refuse(format!("must have at most {most} {unit}")),
        (1, most) if length == 0 => {
            field.refuse(format!("must not be empty: it has between 1 and {most} {unit}"))
        }
        (least, most) => field.refuse(format!("must have between {least} and {most} {unit}")),
    }
}

/// Control characters, and Unicode's own line and paragraph separators.
fn breaks_line(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}
