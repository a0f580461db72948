//! An object of which every field is known.

use std::cell::RefCell;

use serde_json::{Map, Value};

use super::reader::{Context, Field, join};

/// An object whose fields are known.
pub(super) struct Object<'c> {
    cx: &'c Context<'c>,
    path: String,
    map: &'c Map<String, Value>,
    asked: RefCell<Vec<&'static str>>,
}

impl<'c> Object<'c> {
    pub(super) fn new(cx: &'c Context<'c>, path: String, map: &'c Map<String, Value>) -> Self {
        let asked = RefCell::default();
        Self { cx, path, map, asked }
    }

    /// A field that must be there.
    pub(super) fn required<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(&Field<'c>) -> Option<T>,
    ) -> Option<T> {
        read(&self.field(name))
    }

    /// A field that may be left out; null leaves it out.
    pub(super) fn optional<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(&Field<'c>) -> Option<T>,
    ) -> Option<T> {
        let field = self.field(name);
        if field.value.is_null() { None } else { read(&field) }
    }

    /// A field of a change: one that is left out stays, and null is a value.
    pub(super) fn given<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(&Field<'c>) -> Option<T>,
    ) -> Option<T> {
        let field = self.field(name);
        if self.map.contains_key(name) {
            read(&field)
        } else {
            None
        }
    }

    /// A field by name, without any rule.
    pub(super) fn field(&self, name: &'static str) -> Field<'c> {
        self.asked.borrow_mut().push(name);
        let value = self.map.get(name);
        Field::new(self.cx, join(&self.path, name), value)
    }

    /// Whether the field is there and not null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(|value| !value.is_null())
    }

    pub(super) fn is_empty_array(&self, name: &str) -> bool {
        self.map
            .get(name)
            .is_some_and(|value| value.as_array().is_some_and(Vec::is_empty))
    }

    /// Reports a broken rule of one of its fields.
    pub(super) fn broken(&self, name: &str, message: impl Into<String>) {
        self.cx.add(&join(&self.path, name), message);
    }

    /// Reports a field that is there although it has no meaning beside the others.
    pub(super) fn absent(&self, name: &str, message: &str) {
        if self.has(name) {
            self.broken(name, message);
        }
    }

    /// Reports every field that nobody asked for.
    pub(super) fn finish(&self) {
        self.finish_beside(&[]);
    }

    /// Reports every field that nobody asked for and that is not among `others`.
    pub(super) fn finish_beside(&self, others: &[&str]) {
        let asked = self.asked.borrow();
        let known = |name: &str| asked.contains(&name) || others.contains(&name);
        for name in self.map.keys().filter(|name| !known(name)) {
            let path = join(&self.path, name);
            match asked.iter().find(|known| plain(known) == plain(name)) {
                Some(known) => self
                    .cx
                    .add(&path, format!("is not a known field: did you mean {known}?")),
                None => self.cx.add(
                    &path,
                    format!("is not a known field: known are {}", asked.join(", ")),
                ),
            }
        }
    }
}

/// A field name without what is commonly got wrong: case and separators.
fn plain(name: &str) -> String {
    name.chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}
