//! Walks a JSON value: every field is asked for once, by name, and every broken rule is collected with its
//! path. What was never asked for is unknown.
//!
//! Messages never quote a value: it may be a secret that was put into the wrong place.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::hash::Hash;
use std::ops::RangeInclusive;

use serde_json::Value;

use super::object::Object;
use super::{Rules, limits};
use crate::config::Config;
use crate::error::Violation;

/// What a request is read against, and what was found wrong with it.
pub(super) struct Context<'a> {
    pub(super) rules: &'a Rules,
    /// The config that a PATCH changes; none on create.
    pub(super) previous: Option<&'a Config>,
    found: RefCell<Found>,
}

#[derive(Default)]
struct Found {
    violations: Vec<Violation>,
    more: usize,
}

impl<'a> Context<'a> {
    pub(super) fn new(rules: &'a Rules, previous: Option<&'a Config>) -> Self {
        Self {
            rules,
            previous,
            found: RefCell::default(),
        }
    }

    pub(super) fn add(&self, path: &str, message: impl Into<String>) {
        let mut found = self.found.borrow_mut();
        if found.violations.len() < limits::VIOLATIONS {
            found.violations.push(Violation::new(path, message));
        } else {
            found.more += 1;
        }
    }

    /// The root of a body.
    pub(super) fn root<'c>(&'c self, body: &'c Value) -> Field<'c> {
        Field::new(self, String::new(), Some(body))
    }

    /// What was read, if nothing is wrong.
    pub(super) fn finish<T>(self, read: Option<T>) -> Result<T, Vec<Violation>> {
        let Found { mut violations, more } = self.found.into_inner();
        if more > 0 {
            violations.push(Violation::new("", format!("{more} more rules are broken")));
        }
        match read {
            Some(read) if violations.is_empty() => Ok(read),
            _ => Err(violations),
        }
    }
}

/// A value at a path. One that was not given reads as null.
pub(super) struct Field<'c> {
    pub(super) cx: &'c Context<'c>,
    pub(super) path: String,
    pub(super) value: &'c Value,
    given: bool,
}

impl<'c> Field<'c> {
    pub(super) fn new(cx: &'c Context<'c>, path: String, value: Option<&'c Value>) -> Self {
        Self {
            cx,
            path,
            value: value.unwrap_or(&Value::Null),
            given: value.is_some(),
        }
    }

    /// Reports a broken rule.
    pub(super) fn broken(&self, message: impl Into<String>) {
        self.cx.add(&self.path, message);
    }

    /// Reports a broken rule and gives nothing.
    pub(super) fn refuse<T>(&self, message: impl Into<String>) -> Option<T> {
        self.broken(message);
        None
    }

    /// Reports that the value is missing or of another type.
    fn mistyped<T>(&self, expected: &str) -> Option<T> {
        if self.given {
            self.refuse(format!("must be {expected}, not {}", kind(self.value)))
        } else {
            self.refuse(format!("is required: {expected}"))
        }
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        self.value.as_bool().or_else(|| self.mistyped("true or false"))
    }

    pub(super) fn text(&self) -> Option<&'c str> {
        self.text_that_is("a string")
    }

    pub(super) fn text_that_is(&self, expected: &str) -> Option<&'c str> {
        self.value.as_str().or_else(|| self.mistyped(expected))
    }

    /// A whole number; `2.0` is one, `"2"` is not.
    pub(super) fn integer<N>(&self, range: RangeInclusive<N>) -> Option<N>
    where
        N: Copy + PartialOrd + Display + TryFrom<i128>,
    {
        let (low, high) = (range.start(), range.end());
        let Value::Number(number) = self.value else {
            return self.mistyped(&format!("an integer between {low} and {high}"));
        };
        let whole = number
            .as_i64()
            .map(i128::from)
            .or_else(|| number.as_u64().map(i128::from))
            // A float of 2^63 and more is out of every range, so that the cast may saturate.
            .or_else(|| number.as_f64().filter(|f| f.fract() == 0.0).map(|f| f as i128));
        let Some(whole) = whole else {
            return self.refuse(format!(
                "must be an integer between {low} and {high}, not a fraction"
            ));
        };
        match N::try_from(whole) {
            Ok(n) if range.contains(&n) => Some(n),
            _ => self.refuse(format!("must be between {low} and {high}")),
        }
    }

    /// A number, fractions allowed.
    pub(super) fn number(&self, range: RangeInclusive<f64>) -> Option<f64> {
        let (low, high) = (range.start(), range.end());
        match self.value.as_f64() {
            Some(n) if range.contains(&n) => Some(n),
            Some(_) => self.refuse(format!("must be between {low} and {high}")),
            None => self.mistyped(&format!("a number between {low} and {high}")),
        }
    }

    /// One of a set of words.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let expected = one_of(words.iter().map(|(word, _)| *word));
        let text = self.text_that_is(&expected)?;
        let found = words.iter().find(|(word, _)| *word == text);
        found
            .map(|(_, meaning)| *meaning)
            .or_else(|| self.refuse(format!("must be {expected}")))
    }

    pub(super) fn object(&self) -> Option<Object<'c>> {
        match self.value {
            Value::Object(map) => Some(Object::new(self.cx, self.path.clone(), map)),
            _ => self.mistyped("an object"),
        }
    }

    /// The items of an array, each where it stood; none in place of one that breaks a rule.
    pub(super) fn items<T>(
        &self,
        most: usize,
        read: impl Fn(&Field<'c>) -> Option<T>,
    ) -> Option<Vec<Option<T>>> {
        let Value::Array(items) = self.value else {
            return self.mistyped("an array");
        };
        if items.len() > most {
            return self.refuse(format!("must have at most {most} items"));
        }
        let item = |(i, value)| {
            let path = format!("{}[{i}]", self.path);
            let (cx, given) = (self.cx, true);
            read(&Field {
                cx,
                path,
                value,
                given,
            })
        };
        Some(items.iter().enumerate().map(item).collect())
    }

    /// The entries of an object that the client names freely. In a PATCH, null has removed an entry.
    pub(super) fn entries<T>(
        &self,
        most: usize,
        read: impl Fn(&str, &Field<'c>) -> Option<T>,
    ) -> Option<BTreeMap<String, T>> {
        let Value::Object(map) = self.value else {
            return self.mistyped("an object of strings");
        };
        let patching = self.cx.previous.is_some();
        let given = map.iter().filter(|(_, value)| !(patching && value.is_null()));
        if given.clone().count() > most {
            return self.refuse(format!("must have at most {most} entries"));
        }
        let mut entries = BTreeMap::new();
        for (key, value) in given {
            let path = join(&self.path, key);
            let (cx, given) = (self.cx, true);
            if let Some(entry) = read(
                key,
                &Field {
                    cx,
                    path,
                    value,
                    given,
                },
            ) {
                entries.insert(key.clone(), entry);
            }
        }
        Some(entries)
    }

    /// Reports items that repeat what an earlier one has under `name`.
    pub(super) fn distinct<T, K: Eq + Hash>(
        &self,
        items: &[Option<T>],
        name: &str,
        key: impl Fn(&T) -> Option<K>,
    ) {
        let mut seen = HashMap::new();
        let dot = if name.is_empty() { "" } else { "." };
        for (i, item) in items.iter().enumerate() {
            let Some(key) = item.as_ref().and_then(&key) else {
                continue;
            };
            if let Some(first) = seen.get(&key) {
                let path = format!("{}[{i}]{dot}{name}", self.path);
                self.cx.add(
                    &path,
                    format!(
                        "repeats {}[{first}]{dot}{name}: change or remove one of them",
                        self.path
                    ),
                );
            } else {
                seen.insert(key, i);
            }
        }
    }
}

/// The path of a field, with names that are no plain words in brackets, quoted and cut.
pub(super) fn join(parent: &str, name: &str) -> String {
    const LONGEST: usize = 64;
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !name.is_empty() && name.len() <= LONGEST && name.chars().all(word) {
        let dot = if parent.is_empty() { "" } else { "." };
        return format!("{parent}{dot}{name}");
    }
    let cut: String = name.chars().take(LONGEST).collect();
    let more = if cut.len() < name.len() { "…" } else { "" };
    format!("{parent}[{:?}]", format!("{cut}{more}"))
}

/// `"a", "b" or "c"`.
pub(super) fn one_of<'w>(words: impl Iterator<Item = &'w str>) -> String {
    let mut quoted: Vec<String> = words.map(|word| format!("\"{word}\"")).collect();
    let last = quoted.pop().unwrap_or_default();
    if quoted.is_empty() {
        last
    } else {
        format!("{} or {last}", quoted.join(", "))
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read<T>(body: &Value, read: impl Fn(&Field<'_>) -> Option<T>) -> Result<T, Vec<String>> {
        let rules = Rules::default();
        let cx = Context::new(&rules, None);
        let value = read(&cx.root(body));
        cx.finish(value)
            .map_err(|found| found.iter().map(Violation::to_string).collect())
    }

    #[test]
    fn a_whole_float_is_an_integer_and_a_text_is_not() {
        for body in [json!(2), json!(2.0), json!(2e0)] {
            assert_eq!(read(&body, |f| f.integer(1u8..=9)), Ok(2));
        }
        for (body, message) in [
            (json!(2.5), "must be an integer between 1 and 9, not a fraction"),
            (json!("2"), "must be an integer between 1 and 9, not a string"),
            (json!(null), "must be an integer between 1 and 9, not null"),
            (json!(0), "must be between 1 and 9"),
            (json!(-1), "must be between 1 and 9"),
            (json!(300), "must be between 1 and 9"),
            (json!(u64::MAX), "must be between 1 and 9"),
            (json!(1e300), "must be between 1 and 9"),
            (json!(-1e300), "must be between 1 and 9"),
        ] {
            assert_eq!(read(&body, |f| f.integer(1u8..=9)), Err(vec![message.to_owned()]));
        }
    }

    #[test]
    fn an_unknown_field_is_named_with_the_one_that_was_meant() {
        let body = json!({"vlan_id": 1, "x": 2});
        let object = |f: &Field<'_>| {
            let object = f.object()?;
            object.optional("vlanId", |f| f.integer(1..=2));
            object.finish();
            Some(())
        };
        assert_eq!(
            read(&body, object),
            Err(vec![
                "vlan_id: is not a known field: did you mean vlanId?".to_owned(),
                "x: is not a known field: known are vlanId".to_owned()
            ])
        );
    }

    #[test]
    fn a_hostile_name_is_quoted_and_cut_in_its_path() {
        assert_eq!(join("a", "b-c_1"), "a.b-c_1");
        assert_eq!(join("", "b"), "b");
        assert_eq!(join("a", ""), "a[\"\"]");
        assert_eq!(join("a", "b\nc: fine"), "a[\"b\\nc: fine\"]");
        assert!(join("a", &"x".repeat(1_000_000)).len() < 100);
    }

    #[test]
    fn violations_beyond_the_limit_are_counted() {
        let body = json!(vec![0; 600]);
        let found = read(&body, |f| f.items(600, Field::boolean)).unwrap_err();
        assert_eq!(found.len(), 501);
        assert_eq!(found[500], "100 more rules are broken");
    }
}
