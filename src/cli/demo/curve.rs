//! A line chart of characters, for a terminal.

/// Columns and rows of the area that lines are drawn in.
const WIDTH: usize = 61;
const HEIGHT: usize = 16;

/// One line of the chart: points (x, y) by rising x, joined by straight lines of a mark.
pub(super) struct Series<'a> {
    pub name: &'a str,
    pub mark: char,
    pub points: Vec<(f64, f64)>,
}

/// Draws the series, a later one over an earlier one, over an x axis with a label at each `(x, label)`. Nothing when all
/// points have one x: they make no line.
pub(super) fn draw(title: &str, series: &[Series], labels: &[(f64, String)]) -> Option<String> {
    let points = || series.iter().flat_map(|series| &series.points);
    let (left, right) = range(points().map(|point| point.0))?;
    let (bottom, top) = range(points().map(|point| point.1))?;
    if left == right {
        return None;
    }
    let column = |x: f64| ((x - left) / (right - left) * (WIDTH - 1) as f64).round() as usize;
    // Equal values lie on the bottom row.
    let height = if top > bottom { top - bottom } else { 1.0 };
    let row = |y: f64| HEIGHT - 1 - ((y - bottom) / height * (HEIGHT - 1) as f64).round() as usize;

    let mut area = vec![vec![' '; WIDTH]; HEIGHT];
    for Series { mark, points, .. } in series {
        for pair in points.windows(2) {
            let [(x0, y0), (x1, y1)] = [pair[0], pair[1]];
            let [from, to] = [column(x0), column(x1)];
            (from..=to).for_each(|at| {
                let part = (at - from) as f64 / (to - from).max(1) as f64;
                area[row(y0 + part * (y1 - y0))][at] = *mark;
            });
        }
    }

    let value = |number: usize| top - height * number as f64 / (HEIGHT - 1) as f64;
    let rows = area.iter().enumerate().map(|(number, row)| {
        let row: String = row.iter().collect();
        let (label, axis) =
            if number % 5 == 0 { (format!("{:.1}", value(number)), '┤') } else { (String::new(), '│') };
        format!("{label:>8} {axis}{row}").trim_end().to_string()
    });
    let mut lines = vec![title.to_string()];
    lines.extend(rows);
    lines.push(format!("{:>8} └{}", "", "─".repeat(WIDTH)));
    lines.push(axis_labels(labels.iter().map(|(x, label)| (column(*x), label.as_str()))));
    let legend = series.iter().map(|series| format!("{} {}", series.mark, series.name));
    lines.push(format!("{:>10}{}", "", legend.collect::<Vec<_>>().join("   ")));
    Some(lines.join("\n"))
}

/// Labels centred under their columns, as far as there is room between them.
fn axis_labels<'a>(labels: impl Iterator<Item = (usize, &'a str)>) -> String {
    let mut line = String::new();
    for (column, label) in labels {
        // The area begins in column 10.
        let start = (10 + column).saturating_sub(label.len() / 2);
        if line.is_empty() || start > line.len() {
            line += &format!("{:>width$}{label}", "", width = start - line.len());
        }
    }
    line
}

/// The smallest and the largest value; none of no values.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, value| {
        let (low, high) = range.unwrap_or((value, value));
        Some((value.min(low), value.max(high)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of a chart: its title, the area, the axis, labels and legend.
    fn lines(series: &[Series], labels: &[(f64, &str)]) -> Vec<String> {
        let labels: Vec<(f64, String)> = labels.iter().map(|&(x, label)| (x, label.to_string())).collect();
        draw("title", series, &labels).unwrap().lines().map(String::from).collect()
    }

    /// Rows and columns of the area that a mark is at.
    fn places(lines: &[String], mark: char) -> Vec<(usize, usize)> {
        let area = lines[1..=HEIGHT].iter().enumerate();
        area.flat_map(|(row, line)| {
            let of_line = line.chars().skip(10).enumerate();
            of_line.filter(|&(_, c)| c == mark).map(move |(column, _)| (row, column)).collect::<Vec<_>>()
        })
        .collect()
    }

    #[test]
    fn a_line_goes_from_corner_to_corner_through_every_column() {
        let rising =
            Series { name: "rising", mark: 'r', points: vec![(0.4, 20.0), (0.5, 22.0), (0.6, 50.0)] };
        let lines = lines(&[rising], &[(0.4, "40 %"), (0.5, "50 %"), (0.6, "60 %")]);
        let places = places(&lines, 'r');
        let mut columns: Vec<usize> = places.iter().map(|place| place.1).collect();
        columns.sort();
        assert_eq!(columns, (0..WIDTH).collect::<Vec<_>>());
        assert!(places.contains(&(HEIGHT - 1, 0)) && places.contains(&(0, WIDTH - 1)), "{lines:#?}");
        // 22 is 1/15 of the way up, in the middle.
        assert!(places.contains(&(HEIGHT - 2, WIDTH / 2)), "{lines:#?}");
        assert!(lines[1].starts_with("    50.0 ┤") && lines[HEIGHT].starts_with("    20.0 ┤"), "{lines:#?}");
        assert_eq!(lines[0], "title");
        assert_eq!(lines[HEIGHT + 2].split_whitespace().collect::<String>(), "40%50%60%");
        assert_eq!(lines[HEIGHT + 3].trim(), "r rising");
    }

    #[test]
    fn labels_are_centred_under_their_columns() {
        let flat = Series { name: "flat", mark: 'f', points: vec![(0.0, 1.0), (1.0, 1.0)] };
        let lines = lines(&[flat], &[(0.0, "abc"), (0.5, "def"), (1.0, "ghi")]);
        let of = |label: &str| lines[HEIGHT + 2].find(label).unwrap() + 1;
        assert_eq!([of("abc"), of("def"), of("ghi")], [10, 10 + WIDTH / 2, 10 + WIDTH - 1]);
        let places = places(&lines, 'f');
        assert!(places.iter().all(|place| place.0 == HEIGHT - 1) && places.len() == WIDTH);
    }

    #[test]
    fn a_later_series_hides_an_earlier_one_and_both_are_in_the_legend() {
        let of = |name, mark| Series { name, mark, points: vec![(0.0, 1.0), (1.0, 2.0)] };
        let lines = lines(&[of("below", 'b'), of("above", 'a')], &[]);
        assert_eq!((places(&lines, 'b').len(), places(&lines, 'a').len()), (0, WIDTH));
        assert_eq!(lines[HEIGHT + 3].trim(), "b below   a above");
    }

    #[test]
    fn one_sparsity_makes_no_line() {
        let point = Series { name: "point", mark: 'p', points: vec![(0.5, 30.0)] };
        assert!(draw("title", &[point], &[]).is_none());
        assert!(draw("title", &[], &[]).is_none());
    }
}
