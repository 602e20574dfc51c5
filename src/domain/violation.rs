//! What is wrong with a request, all of it at once.

use std::{borrow::Cow, fmt, str::FromStr};

/// Why one value is not legal, worded to follow the field's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    text: Cow<'static, str>,
    code: &'static str,
}

impl Invalid {
    /// A reason such as "must not be empty". Never contains the value itself,
    /// which may be a secret.
    pub fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            text: reason.into(),
            code: "",
        }
    }

    /// The same with a name for programs, in capitals.
    pub fn coded(code: &'static str, reason: &'static str) -> Self {
        Self {
            text: reason.into(),
            code,
        }
    }

    /// The name for programs; empty for most.
    pub fn code(&self) -> &'static str {
        self.code
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Invalid {}

/// One field and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field in the request: `user.metadata`.
    pub field: Cow<'static, str>,
    /// What is wrong with it.
    pub reason: Invalid,
}

/// Collects violations while a request is read, so that its sender learns of
/// all of them in one answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Violations(Vec<Violation>);

impl Violations {
    /// How many are reported at the most; error details travel in trailers.
    pub const MOST: usize = 16;

    /// A single violation.
    pub fn one(field: impl Into<Cow<'static, str>>, reason: impl Into<Cow<'static, str>>) -> Self {
        let mut violations = Self::default();
        violations.add(field, Invalid::new(reason));
        violations
    }

    /// Notes one; those past [`Violations::MOST`] are dropped.
    pub fn add(&mut self, field: impl Into<Cow<'static, str>>, reason: Invalid) {
        if self.0.len() < Self::MOST {
            self.0.push(Violation {
                field: field.into(),
                reason,
            });
        }
    }

    /// The value, or a note of what is wrong with it.
    pub fn check<T>(
        &mut self,
        field: impl Into<Cow<'static, str>>,
        value: Result<T, Invalid>,
    ) -> Option<T> {
        value.map_err(|reason| self.add(field, reason)).ok()
    }

    /// Parses a required text.
    pub fn parse<T>(&mut self, field: impl Into<Cow<'static, str>>, text: &str) -> Option<T>
    where
        T: FromStr<Err = Invalid>,
    {
        self.check(field, text.parse())
    }

    /// Parses a text whose emptiness means absence.
    pub fn parse_optional<T>(
        &mut self,
        field: impl Into<Cow<'static, str>>,
        text: &str,
    ) -> Option<T>
    where
        T: FromStr<Err = Invalid>,
    {
        if text.is_empty() {
            None
        } else {
            self.parse(field, text)
        }
    }

    /// Fails if anything was noted.
    pub fn finish(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }

    /// What was noted.
    pub fn as_slice(&self) -> &[Violation] {
        &self.0
    }
}
