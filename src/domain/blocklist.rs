//! Passwords that are long enough and still among the first that anybody
//! tries (NIST SP 800-63B-4, section 3.1.1.2). Offline, for new passwords only.
//!
//! Common passwords are short; made longer to satisfy a rule, they are
//! repeated, or get digits and symbols at their ends. So it is the core of a
//! password that is looked up, and a password that is mostly runs along the
//! keyboard is refused whatever the letters.
//!
//! The list (`common_passwords.txt`, about 22 000 cores) comes from zxcvbn,
//! under the MIT licence; its head says how it was made.
//!
//! It does not estimate strength, undo `p@55w0rd` spellings beyond those on
//! the list, or know what has leaked elsewhere.

use std::{collections::HashSet, sync::LazyLock};

use super::{Invalid, Password};

/// Our own name, which people try first.
const SERVICE: &str = "countersign";

/// What fingers and counting follow, in both directions.
const ROWS: [&str; 12] = [
    "01234567890",
    "abcdefghijklmnopqrstuvwxyz",
    "qwertyuiop",
    "asdfghjkl",
    "zxcvbnm",
    "qwertzuiop",
    "azertyuiop",
    "!@#$%^&*()",
    "1q2w3e4r5t6y7u8i9o0p",
    "q1w2e3r4t5y6u7i8o9p0",
    "qazwsxedcrfvtgbyhnujmikolp",
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik,9ol.0p;/",
];

/// The fewest characters that count as one run.
const RUN: usize = 3;

/// A password of no more runs and single characters than this is refused: it
/// is as easy as one of so many characters.
const PIECES: usize = 5;

/// The fewest letters of a name for it to count.
const NAME: usize = 3;

static COMMON: LazyLock<HashSet<&'static str>> = LazyLock::new(|| {
    include_str!("common_passwords.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect()
});

static RUNS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let backward = ROWS.map(|row| row.chars().rev().collect());
    ROWS.map(str::to_owned)
        .into_iter()
        .chain(backward)
        .collect()
});

/// Whether anything in an entry of `context_words` counts.
pub fn has_word(text: &str) -> bool {
    words(text).next().is_some()
}

/// Refuses a new password that is easy to guess. `names` are what people would
/// try for this user, here: e-mail address, username, display name, and words of
/// the organisation.
pub fn check(password: &Password, names: &[&str]) -> Result<(), Invalid> {
    let text = password.expose().to_lowercase();
    let reason = if pieces(&text) <= PIECES {
        "must not be a sequence or a run along the keyboard"
    } else if repeats(&text) {
        "must not repeat one short part"
    } else if is_names(&text, names) {
        "must not be a name of yours, of this service or of its organisation, with digits or symbols"
    } else if is_common(&text) {
        "must not be a common password, with or without digits and symbols around it"
    } else {
        return Ok(());
    };
    Err(Invalid::new(reason))
}

/// How many runs and single characters the text consists of.
fn pieces(text: &str) -> usize {
    let mut pieces = 0;
    let mut rest = text.chars();
    while let Some(first) = rest.clone().next() {
        let run = run(rest.as_str(), first);
        let step = if run >= RUN { run } else { 1 };
        rest.by_ref().take(step).for_each(drop);
        pieces += 1;
    }
    pieces
}

/// How many characters the run has that the text starts with.
fn run(text: &str, first: char) -> usize {
    let same = text.chars().take_while(|c| *c == first).count();
    let mut next = 0;
    for (at, c) in text.char_indices() {
        let start = text.get(..at + c.len_utf8()).unwrap_or(text);
        if !RUNS.iter().any(|row| row.contains(start)) {
            break;
        }
        next += 1;
    }
    same.max(next)
}

/// Whether the text is one part again and again, and that part too short to
/// be a password itself.
fn repeats(text: &str) -> bool {
    let part = part(text);
    part.len() < text.len() && part.chars().count() < Password::FEWEST
}

/// The part that the text repeats at least twice; all of it if there is none.
fn part(text: &str) -> &str {
    let count = text.chars().count();
    text.char_indices()
        .enumerate()
        .skip(1)
        .take_while(|(length, _)| length * 2 <= count)
        .map(|(_, (at, _))| text.split_at(at))
        .find(|(_, rest)| text.starts_with(rest))
        .map_or(text, |(part, _)| part)
}

/// The parts of a name that count.
fn words(name: &str) -> impl Iterator<Item = &str> {
    name.split(|c: char| !c.is_alphabetic())
        .filter(|word| word.chars().count() >= NAME)
}

/// Whether no letter is left once the names are taken away.
fn is_names(text: &str, names: &[&str]) -> bool {
    let names = names
        .iter()
        .map(|name| name.to_lowercase())
        .collect::<Vec<_>>();
    let mut words: Vec<&str> = names
        .iter()
        .flat_map(|name| words(name))
        .chain([SERVICE])
        .collect();
    // The longest first: `ana` must not spoil `susana`.
    words.sort_unstable_by_key(|word| std::cmp::Reverse(word.len()));
    let has_letters = |text: &str| text.chars().any(char::is_alphabetic);
    let rest = words
        .iter()
        .fold(text.to_owned(), |rest, word| rest.replace(word, " "));
    has_letters(text) && !has_letters(&rest)
}

/// Whether the core of the text is on the list, or the one word in it.
fn is_common(text: &str) -> bool {
    let core = text.trim_matches(|c: char| !c.is_alphabetic());
    let mut words = core
        .split(|c: char| !c.is_alphabetic())
        .filter(|w| !w.is_empty());
    let word = words.next().unwrap_or_default();
    let one_word = words.all(|other| other == word);
    [core, part(core)].iter().any(|core| COMMON.contains(core))
        || (one_word && COMMON.contains(part(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> Option<String> {
        let password = Password::parse(text).unwrap();
        let names = ["ana.lima@example.com", "ana77", "Susana Lima"];
        check(&password, &names)
            .err()
            .map(|reason| reason.to_string())
    }

    fn all_refused(reason: &str, texts: &[&str]) {
        for text in texts {
            let said = refused(text).unwrap_or_default();
            assert!(said.contains(reason), "{text}: {said:?}");
        }
    }

    #[test]
    fn sequences_are_refused() {
        all_refused(
            "a sequence",
            &[
                "aaaaaaaaaaaaaaa",
                "123456789012345",
                "qwertyuiopasdfgh",
                "QwertyuiopAsdfgh",
                "abcdefghijklmno",
                "zyxwvutsrqponmlk",
                "1q2w3e4r5t6y7u8i9o0p",
                "1qaz2wsx3edc4rfv",
                "qazwsxedcrfvtgb",
                "111222333444555",
                "abc123def456ghi",
                "123456789qwerty!",
                "!@#$%^&*()_+1234",
                "éééééééééééééééé",
            ],
        );
    }

    #[test]
    fn repetitions_are_refused() {
        all_refused(
            "repeat",
            &[
                "passwordpassword",
                "x7!kx7!kx7!kx7!k",
                "x7!kx7!kx7!kx7!kx7",
                "J4$vQz9!mJ4$vQz9!m",
            ],
        );
        // A part that could stand alone may come twice.
        assert_eq!(refused("J4$vQz9!mLw2#eRJ4$vQz9!mLw2#eR"), None);
    }

    #[test]
    fn common_passwords_are_refused_however_they_are_padded() {
        all_refused(
            "a common password",
            &[
                "password1234567",
                "Password2024!!!!",
                "...dragon99887711",
                "20242024monkey20242024",
                "password1password2",
                "passwordpassword1",
                "P@ssw0rd!20240101",
                "iloveyou_iloveyou!!",
            ],
        );
    }

    #[test]
    fn names_are_refused_however_they_are_padded() {
        all_refused(
            "a name of yours",
            &[
                "countersign2024!",
                "Countersign.Countersign",
                "ana.lima@example.com",
                "AnaLima198520242",
                "susanalima2024!!",
                "lima#lima#ana#82746",
            ],
        );
    }

    #[test]
    fn words_of_the_organisation_are_names_too() {
        let said = |text: &str, words: &[&str]| {
            let password = Password::parse(text).unwrap();
            check(&password, words).is_err()
        };
        let words = ["Acme", "rocket-skates", "Zürich", "4711", "HQ"];
        for text in [
            "Acme.Skates.2024",
            "Acme-2024-Rocket!",
            "rocket.SKATES.1999",
            "ZÜRICH!!!acme!!!",
        ] {
            assert!(said(text, &words), "{text}");
            assert!(
                !said(text, &["other"]),
                "{text} is refused for another reason"
            );
        }
        // Made of them and of more; what is no word or too short says nothing.
        for text in [
            "acme pays for my lunch",
            "4711 hq 0815 hq 4711",
            "rocketry in zurich",
        ] {
            assert!(!said(text, &words), "{text}");
        }
        assert!(has_word("rocket-skates") && has_word("a-b-Ähre"));
        assert!(!has_word("HQ") && !has_word("4711") && !has_word(""));
    }

    #[test]
    fn good_passwords_pass() {
        for text in [
            "correct horse battery staple",
            "tropical-mango-window-7",
            "fX9$mQ2!vLk8@wZ4",
            "839201746558213",
            "ana likes green tea",
            "my dragon eats pudding",
            "πρωινός καφές με γάλα",
            "おはようございます今日もいい天気",
            "banana for breakfast",
        ] {
            assert_eq!(refused(text), None, "{text}");
        }
    }

    #[test]
    fn short_names_and_no_names_say_nothing() {
        let password = Password::parse("jo-jo-jo 8271 jo 5").unwrap();
        assert!(check(&password, &["jo@x.io", "", "  "]).is_ok());
    }

    #[test]
    fn the_list_is_as_its_head_says() {
        assert!(COMMON.len() > 20_000);
        let entries = include_str!("common_passwords.txt").lines();
        let entries: Vec<&str> = entries.filter(|line| !line.starts_with('#')).collect();
        assert!(entries.is_sorted_by(|a, b| a < b));
        for entry in entries {
            assert!(entry.len() >= 4 && entry.is_ascii(), "{entry}");
            assert_eq!(entry, entry.to_lowercase());
            assert_eq!(entry, entry.trim_matches(|c: char| !c.is_alphabetic()));
        }
    }

    /// The longest legal password costs no more than a blink.
    #[test]
    fn long_passwords_are_judged_too() {
        let long = "a1".repeat(128);
        assert!(refused(&long).unwrap().contains("repeat"));
        let long: String = ("correct horse battery staple ".repeat(9))[..256].to_owned();
        assert_eq!(refused(&long), None);
    }
}
