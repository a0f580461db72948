//! Quantities as types: memory, CPU, and moments in time, each with the contract's JSON.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An amount of memory or disk, in bytes. MB and GB are binary (2^20, 2^30).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// `mb` × 2^20 bytes, saturating.
    pub const fn from_mb(mb: u64) -> Self {
        Self(mb.saturating_mul(1 << 20))
    }

    /// `gb` × 2^30 bytes, saturating.
    pub const fn from_whole_gb(gb: u64) -> Self {
        Self(gb.saturating_mul(1 << 30))
    }

    /// `gb` × 2^30 bytes, rounded to the nearest byte; negative and NaN are 0.
    pub fn from_gb(gb: f64) -> Self {
        Self((gb * (1u64 << 30) as f64).round() as u64)
    }

    /// Whole MB, rounded down.
    pub const fn as_mb(self) -> u64 {
        self.0 >> 20
    }

    /// GB, to six decimals, so that what was given as `0.1` reads back as `0.1`.
    pub fn as_gb(self) -> f64 {
        (self.0 as f64 / (1u64 << 30) as f64 * 1e6).round() / 1e6
    }
}

/// An amount of CPU, in billionths of a core (Docker's `NanoCpus`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cores(pub u64);

impl Cores {
    /// `cores` whole cores.
    pub const fn whole(cores: u32) -> Self {
        Self(cores as u64 * 1_000_000_000)
    }

    /// A fraction of cores, rounded to the nearest billionth; negative and NaN are 0.
    pub fn from_f64(cores: f64) -> Self {
        Self((cores * 1e9).round() as u64)
    }

    /// As a number of cores.
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / 1e9
    }
}

impl Serialize for Cores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        number(self.as_f64(), serializer)
    }
}

impl<'de> Deserialize<'de> for Cores {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        f64::deserialize(deserializer).map(Self::from_f64)
    }
}

/// Writes `2` rather than `2.0`, as clients that read integers expect.
fn number<S: Serializer>(value: f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.fract() == 0.0 && value.abs() < 9e15 {
        serializer.serialize_i64(value as i64)
    } else {
        serializer.serialize_f64(value)
    }
}

/// Serde: [`Bytes`] as a whole number of MB.
pub mod mb {
    use super::{Bytes, Deserialize, Deserializer, Serializer};

    /// Writes whole MB.
    pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(bytes.as_mb())
    }

    /// Reads whole MB.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        u64::deserialize(deserializer).map(Bytes::from_mb)
    }

    /// The same for a value that may be absent.
    pub mod option {
        use super::{Bytes, Deserialize, Deserializer, Serializer};

        /// Writes whole MB or null.
        pub fn serialize<S: Serializer>(bytes: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
            match bytes {
                Some(bytes) => super::serialize(bytes, serializer),
                None => serializer.serialize_none(),
            }
        }

        /// Reads whole MB or null.
        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
            Ok(Option::<u64>::deserialize(deserializer)?.map(Bytes::from_mb))
        }
    }
}

/// Serde: [`Bytes`] as a number of GB, fractions allowed.
pub mod gb {
    use super::{Bytes, Deserialize, Deserializer, Serializer, number};

    /// Writes GB.
    pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        number(bytes.as_gb(), serializer)
    }

    /// Reads GB.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        f64::deserialize(deserializer).map(Bytes::from_gb)
    }

    /// The same for a value that may be absent.
    pub mod option {
        use super::{Bytes, Deserialize, Deserializer, Serializer};

        /// Writes GB or null.
        pub fn serialize<S: Serializer>(bytes: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
            match bytes {
                Some(bytes) => super::serialize(bytes, serializer),
                None => serializer.serialize_none(),
            }
        }

        /// Reads GB or null.
        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
            Ok(Option::<f64>::deserialize(deserializer)?.map(Bytes::from_gb))
        }
    }
}

/// A moment: milliseconds since 1970-01-01 UTC. In JSON RFC 3339 with milliseconds and `Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
pub struct Timestamp(i64);

impl Timestamp {
    /// From milliseconds since the epoch; what RFC 3339 cannot write is clamped.
    pub fn from_millis(millis: i64) -> Self {
        Self(millis.clamp(-62_135_596_800_000, 253_402_207_199_999))
    }

    /// Milliseconds since the epoch.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Reads RFC 3339, any offset; finer than a millisecond is cut off.
    pub fn parse(text: &str) -> Option<Self> {
        text.parse::<jiff::Timestamp>()
            .ok()
            .map(|t| Self::from_millis(t.as_millisecond()))
    }

    /// How long from `earlier` until this moment; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self::from_millis(
            self.0
                .saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)),
        )
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(t) => write!(f, "{t:.3}"),
            Err(_) => write!(f, "{}ms", self.0),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not an RFC 3339 time"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_time_has_milliseconds_and_z() {
        let t = Timestamp::parse("2026-01-02T03:04:05.678Z").unwrap();
        assert_eq!(t.to_string(), "2026-01-02T03:04:05.678Z");
        assert_eq!(Timestamp::from_millis(0).to_string(), "1970-01-01T00:00:00.000Z");
        for end in [i64::MIN, i64::MAX] {
            let t = Timestamp::from_millis(end);
            assert_eq!(Timestamp::parse(&t.to_string()), Some(t));
        }
    }

    #[test]
    fn whole_numbers_are_written_without_a_point() {
        assert_eq!(serde_json::to_string(&Cores::whole(2)).unwrap(), "2");
        assert_eq!(serde_json::to_string(&Cores::from_f64(0.5)).unwrap(), "0.5");
    }

    proptest! {
        #[test]
        fn times_read_back(millis in -62_135_596_800_000i64..253_402_207_199_999) {
            let t = Timestamp::from_millis(millis);
            prop_assert_eq!(Timestamp::parse(&t.to_string()), Some(t));
        }

        #[test]
        fn fractions_of_gb_read_back(thousandths in 1u64..10_000_000) {
            let gb = thousandths as f64 / 1000.0;
            prop_assert_eq!(Bytes::from_gb(gb).as_gb(), gb);
        }

        #[test]
        fn fractions_of_cores_read_back(thousandths in 1u64..1_000_000) {
            let cores = thousandths as f64 / 1000.0;
            prop_assert_eq!(Cores::from_f64(cores).as_f64(), cores);
        }
    }
}
