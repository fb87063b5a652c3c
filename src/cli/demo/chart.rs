//! Columns of block characters: a rate over time, as text.

/// Height of the chart in lines.
const HEIGHT: usize = 9;
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Something that happened at one column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    /// Which column, from 0.
    pub(super) column: usize,
    pub(super) text: String,
}

/// Draws `values`, one column each, with a scale on the left and one line for each mark below. Values that are not
/// numbers or below zero are drawn as zero.
pub(super) fn draw(values: &[f64], seconds_per_column: f64, marks: &[Mark]) -> Vec<String> {
    let top = nice_top(
        values
            .iter()
            .copied()
            .filter(|v| v.is_finite())
            .fold(0.0, f64::max),
    );
    let mut lines = Vec::with_capacity(HEIGHT + marks.len() + 2);
    for line in (0..HEIGHT).rev() {
        let label = match line {
            l if l + 1 == HEIGHT => si(top),
            l if l == HEIGHT / 2 => si(top / 2.0),
            _ => String::new(),
        };
        let cells: String = values.iter().map(|v| cell(*v, top, line)).collect();
        lines.push(format!("{label:>6} ┤{}", cells.trim_end()));
    }
    let mut axis: Vec<char> = vec!['─'; values.len()];
    for mark in marks {
        if let Some(tick) = axis.get_mut(mark.column) {
            *tick = '┬';
        }
    }
    lines.push(format!("{:>6} └{}", 0, axis.into_iter().collect::<String>()));
    lines.push(times(values.len(), seconds_per_column));
    for mark in marks.iter().filter(|m| m.column < values.len()) {
        lines.push(format!("{:7} {}▲ {}", "", " ".repeat(mark.column), mark.text));
    }
    lines
}

/// What of a column is seen in line `line`, counted from the bottom.
fn cell(value: f64, top: f64, line: usize) -> char {
    if !value.is_finite() || value <= 0.0 || top <= 0.0 {
        return ' ';
    }
    let eighths = (value / top).min(1.0) * (HEIGHT * 8) as f64;
    let here = (eighths - (line * 8) as f64).clamp(0.0, 8.0);
    // What is not nothing is seen.
    let least = if line == 0 { 1.0 } else { 0.0 };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 8"
    )]
    let here = here.round().max(least) as usize;
    EIGHTHS.get(here).copied().unwrap_or('█')
}

/// Seconds under the axis, every ten columns.
fn times(columns: usize, seconds_per_column: f64) -> String {
    let mut line = " ".repeat(8);
    for column in (0..columns).step_by(10) {
        let label = format!("{:.0}s", column as f64 * seconds_per_column);
        line.push_str(&format!("{label:<10}"));
    }
    line.trim_end().to_owned()
}

/// The next of 1, 1.5, 2, 3, 4, 5, 6, 8 times a power of ten that is not below `most`.
fn nice_top(most: f64) -> f64 {
    if most <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(most.log10().floor());
    [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0]
        .into_iter()
        .map(|step| step * power)
        .find(|top| *top >= most)
        .unwrap_or(most)
}

/// A number in short: `950`, `24.3k`, `1.20M`.
pub(super) fn si(value: f64) -> String {
    // The sum of nothing is a negative zero, which nobody wants to read.
    let value = value + 0.0;
    let size = value.abs();
    if size >= 999_500.0 {
        format!("{:.2}M", value / 1e6)
    } else if size >= 99_950.0 {
        format!("{:.0}k", value / 1e3)
    } else if size >= 999.5 {
        format!("{:.1}k", value / 1e3)
    } else {
        format!("{value:.0}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "0"),
            (950.4, "950"),
            (999.6, "1.0k"),
            (24_310.0, "24.3k"),
            (99_960.0, "100k"),
            (431_000.0, "431k"),
            (1_204_000.0, "1.20M"),
        ] {
            assert_eq!(si(value), text);
        }
    }

    #[test]
    fn the_scale_is_round_and_holds_the_largest_value() {
        for (most, top) in [
            (0.0, 1.0),
            (1.0, 1.0),
            (7.0, 8.0),
            (41_000.0, 50_000.0),
            (9e5, 1e6),
        ] {
            assert!((nice_top(most) - top).abs() < 1e-6 * top, "{most}");
        }
    }

    #[test]
    fn columns_are_as_high_as_their_values() {
        let lines = draw(&[0.0, 50.0, 100.0, 1.0, f64::NAN, -3.0], 1.0, &[]);
        let column = |at: usize| -> String {
            lines[..HEIGHT]
                .iter()
                .map(|l| l.chars().nth(8 + at).unwrap_or(' '))
                .collect()
        };
        assert_eq!(column(0).trim(), "");
        assert_eq!(column(1).trim(), "▄████");
        assert_eq!(column(2), "█".repeat(HEIGHT));
        assert_eq!(column(3).trim(), "▁");
        assert_eq!(column(4).trim(), "");
        assert_eq!(column(5).trim(), "");
        assert!(lines[0].starts_with("   100 ┤"));
    }

    #[test]
    fn marks_stand_under_their_columns() {
        let mark = |column, text: &str| Mark {
            column,
            text: text.to_owned(),
        };
        let lines = draw(&[1.0; 12], 2.0, &[mark(3, "here"), mark(99, "outside")]);
        assert_eq!(lines.last().map(String::as_str), Some("           ▲ here"));
        assert!(lines.iter().all(|l| !l.contains("outside")));
        assert_eq!(lines[HEIGHT].chars().nth(8 + 3), Some('┬'));
        assert_eq!(lines[HEIGHT + 1], "        0s        20s");
    }

    #[test]
    fn nothing_to_draw_is_drawn() {
        assert_eq!(draw(&[], 1.0, &[]).len(), HEIGHT + 2);
    }
}
