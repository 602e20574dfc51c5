//! Rules that all short texts share.

use super::Invalid;

/// Refuses what no name, label or agent string needs and what breaks
/// databases, terminals and readers: control characters (NUL among them) and
/// the bidirectional controls that make text read as what it is not
/// (Unicode TR 36, section 2). Right-to-left letters themselves are welcome.
pub fn check(text: &str, most: usize) -> Result<(), Invalid> {
    if text.chars().count() > most {
        return Err(Invalid::new(format!("must be at most {most} characters")));
    }
    if text.chars().any(forbidden) {
        return Err(Invalid::new("must not contain control characters"));
    }
    Ok(())
}

/// The text without what [`check`] refuses, cut to `most` bytes: for texts
/// that nobody can be asked to mend, such as a `user-agent`.
pub fn clean(text: &str, most: usize) -> String {
    let mut clean = String::with_capacity(text.len().min(most));
    for c in text.chars().filter(|c| !forbidden(*c)) {
        if clean.len() + c.len_utf8() > most {
            break;
        }
        clean.push(c);
    }
    clean
}

fn forbidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}' | '\u{feff}'
            | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether the text starts with a-z and goes on with a-z, 0-9 and `extra`.
pub fn is_slug(text: &str, extra: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || extra.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_to_left_letters_pass_and_their_overrides_do_not() {
        assert!(check("مرحبا שלום", 64).is_ok());
        assert!(check("evil\u{202e}gpj.exe", 64).is_err());
        assert!(check("a\0b", 64).is_err());
    }

    #[test]
    fn clean_cuts_between_characters() {
        assert_eq!(clean("a\0b\u{202e}é", 3), "ab");
        assert_eq!(clean("abé", 4), "abé");
    }
}
