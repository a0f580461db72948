//! A thin layer over the XML writer: elements, attributes, text, and a refusal of what XML cannot hold.

use quick_xml::Writer;
use quick_xml::events::{BytesEnd, BytesStart, BytesText, Event};

/// Why a document cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum XmlError {
    /// XML has no way to write this character.
    #[error("a value holds the character {0:?}, which XML cannot hold")]
    Character(char),
    /// The writer failed.
    #[error("the document could not be written")]
    Write,
}

type Result = std::result::Result<(), XmlError>;

/// A document being written.
pub(super) struct Document {
    writer: Writer<Vec<u8>>,
}

/// The attributes of an element.
pub(super) type Attributes<'a> = &'a [(&'a str, &'a str)];

impl Document {
    /// Writes a document; `build` fills it.
    pub(super) fn build(build: impl FnOnce(&mut Self) -> Result) -> std::result::Result<String, XmlError> {
        let mut document = Self {
            writer: Writer::new_with_indent(Vec::new(), b' ', 2),
        };
        build(&mut document)?;
        String::from_utf8(document.writer.into_inner()).map_err(|_| XmlError::Write)
    }

    fn event(&mut self, event: Event<'_>) -> Result {
        self.writer.write_event(event).map_err(|_| XmlError::Write)
    }

    fn start(name: &str, attributes: Attributes<'_>) -> std::result::Result<BytesStart<'static>, XmlError> {
        let mut start = BytesStart::new(name.to_owned());
        for (key, value) in attributes {
            check(value)?;
            start.push_attribute((*key, *value));
        }
        Ok(start)
    }

    /// An element without content.
    pub(super) fn empty(&mut self, name: &str, attributes: Attributes<'_>) -> Result {
        let start = Self::start(name, attributes)?;
        self.event(Event::Empty(start))
    }

    /// An element with text.
    pub(super) fn text(&mut self, name: &str, attributes: Attributes<'_>, text: &str) -> Result {
        check(text)?;
        let start = Self::start(name, attributes)?;
        self.event(Event::Start(start))?;
        self.event(Event::Text(BytesText::new(text)))?;
        self.event(Event::End(BytesEnd::new(name)))
    }

    /// An element with other elements.
    pub(super) fn nest(
        &mut self,
        name: &str,
        attributes: Attributes<'_>,
        inside: impl FnOnce(&mut Self) -> Result,
    ) -> Result {
        let start = Self::start(name, attributes)?;
        self.event(Event::Start(start))?;
        inside(self)?;
        self.event(Event::End(BytesEnd::new(name)))
    }

    /// A document that libvirt itself wrote, as an element of this one.
    pub(super) fn embed(&mut self, xml: &str) -> Result {
        self.event(Event::Text(BytesText::from_escaped(xml)))
    }
}

/// The writer escapes what XML can hold and writes the rest raw, so the rest is refused here. Line ends and tabs
/// in attributes would be read back as blanks; nothing of ours needs them.
fn check(value: &str) -> Result {
    let cannot = |c: char| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}');
    value
        .chars()
        .find(|c| cannot(*c))
        .map_or(Ok(()), |c| Err(XmlError::Character(c)))
}
