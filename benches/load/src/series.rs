//! What the rounds have given: medians, and how far the rounds lay apart.

use std::fmt;

/// One value for each round.
#[derive(Debug, Clone, Default)]
pub struct Series(pub Vec<f64>);

impl Series {
    /// The middle one.
    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        if sorted.len() % 2 == 1 {
            at(middle)
        } else {
            f64::midpoint(at(middle.wrapping_sub(1)), at(middle))
        }
    }

    /// The smallest and the largest.
    pub fn range(&self) -> (f64, f64) {
        let sorted = self.sorted();
        let of = |value: Option<&f64>| value.copied().unwrap_or(f64::NAN);
        (of(sorted.first()), of(sorted.last()))
    }

    /// Round by round, this one divided by another.
    pub fn per(&self, other: &Self) -> Self {
        self.with(other, |a, b| a / b)
    }

    /// Round by round, both together.
    pub fn with(&self, other: &Self, combine: impl Fn(f64, f64) -> f64) -> Self {
        let pairs = self.0.iter().zip(&other.0);
        Self(pairs.map(|(a, b)| combine(*a, *b)).collect())
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

impl Extend<f64> for Series {
    fn extend<I: IntoIterator<Item = f64>>(&mut self, values: I) {
        self.0.extend(values);
    }
}

/// A number with as many digits as say something.
pub fn short(value: f64) -> String {
    match value.abs() {
        size if !size.is_finite() => "-".to_owned(),
        size if size >= 100.0 => {
            let digits = format!("{value:.0}");
            let (sign, digits) = digits.split_at(usize::from(value < 0.0));
            sign.to_owned() + &in_thousands(digits)
        }
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn in_thousands(digits: &str) -> String {
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&short(self.median()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_of_one_round() {
        let ours = Series(vec![2.0, 40.0, 3.0]);
        let yardstick = Series(vec![1.0, 10.0, 3.0]);
        let ratio = ours.per(&yardstick);
        assert_eq!(ratio.0, [2.0, 4.0, 1.0]);
        assert_eq!(short(ratio.median()), "2.00");
        assert_eq!(ratio.range(), (1.0, 4.0));
        assert_eq!(short(Series(vec![1.0, 2.0]).median()), "1.50");
    }

    #[test]
    fn numbers_are_short() {
        let texts = [0.123, 12.34, 1234.5, 1_234_567.0, f64::NAN].map(short);
        assert_eq!(texts, ["0.12", "12.3", "1,234", "1,234,567", "-"]);
    }
}
