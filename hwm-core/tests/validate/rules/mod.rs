//! The contract's rules, one table each: what is taken, and what is refused with which words.

mod bounds;
mod container;
mod gpu;
mod inference;
mod machine;
mod network;
mod resource;

use hwm_core::config::Config;
use serde_json::Value;

use crate::samples::{self, violations};

pub(crate) fn machine() -> Value {
    samples::body(&Config::Machine(samples::machine()))
}

pub(crate) fn container() -> Value {
    samples::body(&Config::Container(samples::container()))
}

pub(crate) fn inference() -> Value {
    samples::body(&Config::Inference(samples::inference()))
}

pub(crate) fn set(mut body: Value, pointer: &str, value: Value) -> Value {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match body.pointer_mut(parent).unwrap() {
        Value::Object(map) => map.insert(name.to_owned(), value),
        other => panic!("{parent} is no object: {other}"),
    };
    body
}

pub(crate) fn path(pointer: &str) -> String {
    pointer[1..].replace('/', ".")
}

/// Values that a field takes.
pub(crate) fn takes(body: &Value, pointer: &str, values: impl IntoIterator<Item = Value>) {
    for value in values {
        let found = violations(&set(body.clone(), pointer, value.clone()));
        assert_eq!(found, [""; 0], "{pointer} = {value}");
    }
}

/// Values that a field refuses, with words that the violation contains.
pub(crate) fn refuses(body: &Value, pointer: &str, values: impl IntoIterator<Item = (Value, &'static str)>) {
    let path = path(pointer);
    for (value, words) in values {
        let found = violations(&set(body.clone(), pointer, value.clone()));
        let named = |v: &String| v.starts_with(&path) && v.contains(words);
        assert!(found.iter().any(named), "{pointer} = {value}: {found:?}");
    }
}

pub(crate) fn texts<const N: usize>(texts: [&str; N]) -> [Value; N] {
    texts.map(Value::from)
}

pub(crate) fn all<const N: usize>(texts: [&str; N], words: &'static str) -> Vec<(Value, &'static str)> {
    texts.into_iter().map(|text| (text.into(), words)).collect()
}
