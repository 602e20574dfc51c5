//! The table for the terminal and docs/performance.md, and its plot.

use std::fmt::Write as _;

use anyhow::bail;

use crate::{
    Bench,
    findings::{Bar, Findings, Row},
    machine::Machine,
    rows::Group,
    series::{Series, short},
};

/// A table of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Table,
    Growth,
}

impl Part {
    /// What these groups make whole.
    pub fn of(groups: &[Group]) -> Option<Self> {
        match groups {
            [] => Some(Self::Table),
            [Group::Growth] => Some(Self::Growth),
            _ => None,
        }
    }

    /// Where its plot goes.
    pub const fn plot(self) -> &'static str {
        match self {
            Self::Table => "docs/performance.svg",
            Self::Growth => "docs/growth.svg",
        }
    }

    /// It stands between these on the page.
    const fn marks(self) -> [&'static str; 2] {
        match self {
            Self::Table => ["<!-- bench -->", "<!-- /bench -->"],
            Self::Growth => ["<!-- growth -->", "<!-- /growth -->"],
        }
    }
}

/// All of it in Markdown.
pub fn markdown(
    bench: &Bench,
    machine: &Machine,
    found: &Findings,
    others: &[(Group, f64)],
) -> String {
    let mut text = String::from(
        "| what | bar | dream | seen | rounds, least to most | met |\n\
         | --- | --- | --- | --- | --- | --- |\n",
    );
    for row in &found.rows {
        line(
            &mut text,
            &[
                row.what.to_owned(),
                bar(row.bar, row.unit),
                row.dream.map_or(String::new(), |dream| {
                    let dream = match row.bar {
                        Bar::AtMost(_) => Bar::AtMost(dream),
                        Bar::AtLeast(_) => Bar::AtLeast(dream),
                    };
                    bar(dream, row.unit)
                }),
                format!("**{}**", with_unit(row.seen.median(), row.unit)),
                range(&row.seen, row.unit),
                met(row),
            ],
        );
    }
    if !found.figures.is_empty() {
        text.push_str("\n| figure | median | rounds, least to most |\n| --- | --- | --- |\n");
    }
    for figure in &found.figures {
        line(
            &mut text,
            &[
                figure.what.clone(),
                with_unit(figure.seen.median(), figure.unit),
                range(&figure.seen, figure.unit),
            ],
        );
    }
    text.push('\n');
    for note in &found.notes {
        item(&mut text, note);
    }
    conditions(&mut text, bench, machine, others);
    text
}

/// Where it ran, how, and how noisy it was there.
fn conditions(text: &mut String, bench: &Bench, machine: &Machine, others: &[(Group, f64)]) {
    item(
        text,
        &format!(
            "Machine: {}, {} cores, Linux {}. {}.",
            machine.cpu,
            machine.cores,
            machine.kernel,
            machine.versions.join("; ")
        ),
    );
    let servers = bench.servers.0.as_deref();
    let servers = servers.map_or_else(|| "any core".to_owned(), |cores| format!("core {cores}"));
    item(
        text,
        &format!(
            "Service, hash lanes and yardsticks on {servers}; driver and PostgreSQL on core {}; all at \
             nice {}. Settings of the service: the defaults, but `limits.rate_limits_enabled = false`, as all \
             load comes from one address, and `tokens.access_seconds = 3600`, so that tokens outlive \
             the run.",
            machine.ours, machine.nice
        ),
    );
    let others: Vec<String> = others
        .iter()
        .map(|(group, share)| match group {
            Group::Writes => format!("{:.0} % in {group} (PostgreSQL included)", share * 100.0),
            _ => format!("{:.0} % in {group}", share * 100.0),
        })
        .collect();
    item(
        text,
        &format!(
            "{} rounds{}; what is seen is the median of the rounds' ratios. Noise: how far the rounds \
             lie apart, as above; the load average was {} when it began, and other processes took \
             of the machine's CPU {}. It took {:.0} minutes.",
            bench.rounds,
            if bench.quick { ", quick" } else { "" },
            machine.load,
            others.join(", "),
            bench.begun.elapsed().as_secs_f64() / 60.0
        ),
    );
}

fn line(text: &mut String, cells: &[String]) {
    // Writing to a String does not fail.
    writeln!(text, "| {} |", cells.join(" | ")).ok();
}

fn item(text: &mut String, note: &str) {
    writeln!(text, "- {note}").ok();
}

fn bar(bar: Bar, unit: &str) -> String {
    let sign = match bar {
        Bar::AtMost(_) => "≤",
        Bar::AtLeast(_) => "≥",
    };
    format!("{sign} {}", with_unit(bar.value(), unit))
}

fn with_unit(value: f64, unit: &str) -> String {
    format!("{} {unit}", short(value))
}

fn range(seen: &Series, unit: &str) -> String {
    if seen.0.len() < 2 {
        return String::new();
    }
    let (least, most) = seen.range();
    format!("{} to {}", short(least), with_unit(most, unit))
}

fn met(row: &Row) -> String {
    if row.is_met() {
        "yes".to_owned()
    } else {
        format!("no, {} × off", short(row.off()))
    }
}

/// The page with a new table.
pub fn replace(page: &str, part: Part, table: &str) -> anyhow::Result<String> {
    let [begin, end] = part.marks();
    let Some((before, rest)) = page.split_once(begin) else {
        bail!("the page has no {begin}");
    };
    let Some((_, after)) = rest.split_once(end) else {
        bail!("the page has no {end}");
    };
    Ok(format!(
        "{before}{begin}\n{}\n{end}{after}",
        table.trim_end()
    ))
}

/// Bars that say how much of what is allowed is used up.
pub fn svg(found: &Findings) -> String {
    const LEFT: f64 = 470.0;
    const WIDTH: f64 = 360.0;
    const LINE: f64 = 26.0;
    const TOP: f64 = 44.0;
    /// The end of the scale; longer bars are cut and say their length.
    const MOST: f64 = 2.0;
    let height = TOP + LINE * found.rows.len() as f64 + 16.0;
    let at = |share: f64| LEFT + WIDTH * share.min(MOST) / MOST;
    let mut text = String::new();
    let mut put = |piece: String| {
        text.push_str(&piece);
        text.push('\n');
    };
    put(format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 920 {height}" font-family="sans-serif" font-size="13">"#
    ));
    put(format!(
        r##"<rect width="920" height="{height}" fill="#fff"/>"##
    ));
    put(r##"<text x="12" y="22" fill="#333">Share of what the bar allows; left of the line it is met, and less is better. Grey tick: the dream.</text>"##.to_owned());
    for (index, row) in found.rows.iter().enumerate() {
        let y = TOP + LINE * index as f64;
        let end = at(row.off());
        let colour = if row.is_met() { "#2a7f4f" } else { "#b3402a" };
        let (label, base) = (escape(row.what), y + 13.0);
        put(format!(
            r##"<text x="{}" y="{base}" text-anchor="end" fill="#222">{label}</text>"##,
            LEFT - 8.0
        ));
        put(format!(
            r#"<rect x="{LEFT}" y="{y}" width="{:.1}" height="17" fill="{colour}"/>"#,
            end - LEFT
        ));
        if let Some(dream) = row.dream {
            let share = match row.bar {
                Bar::AtMost(bar) => dream / bar,
                Bar::AtLeast(bar) => bar / dream,
            };
            put(format!(
                r##"<rect x="{:.1}" y="{}" width="2" height="21" fill="#999"/>"##,
                at(share) - 1.0,
                y - 2.0
            ));
        }
        let seen = escape(&with_unit(row.seen.median(), row.unit));
        put(format!(
            r##"<text x="{:.1}" y="{base}" fill="#222">{seen}</text>"##,
            end.max(at(1.0)) + 6.0
        ));
    }
    put(format!(
        r##"<rect x="{:.1}" y="{}" width="1.5" height="{}" fill="#222"/>"##,
        at(1.0),
        TOP - 8.0,
        height - TOP
    ));
    put("</svg>".to_owned());
    text
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        for part in [Part::Table, Part::Growth] {
            let [begin, end] = part.marks();
            let page = format!("# Title\n\n{begin}\nold\n{end}\n\nmore\n");
            let once = replace(&page, part, "new\n").unwrap();
            assert_eq!(once, format!("# Title\n\n{begin}\nnew\n{end}\n\nmore\n"));
            assert_eq!(replace(&once, part, "new\n").unwrap(), once);
            assert!(replace("no marks", part, "new").is_err());
        }
    }

    #[test]
    fn the_plot_has_a_bar_for_each_row() {
        let mut found = Findings::default();
        let dream = Some(1.2);
        found.row(
            "a < b & c",
            Bar::AtMost(1.5),
            dream,
            "×",
            Series(vec![30.0]),
        );
        let plot = svg(&found);
        assert!(plot.contains("a &lt; b &amp; c") && plot.contains(">30.0 ×<"));
        assert!(plot.ends_with("</svg>\n"));
    }
}
