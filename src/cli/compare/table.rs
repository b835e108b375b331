//! The table of a comparison.

use crate::evaluate::comparison::{MethodComparison, MethodResult, PointResult, Quantity};
use crate::evaluate::noise::Standing;
use crate::evaluate::zero_shot::tasks::Task;
use crate::reference::Sparsity;

/// The columns of the table, which are known before the first number.
pub(super) struct Table {
    /// Quantities that methods are compared by: each has a column, and another for its gap to dense.
    shown: Vec<Quantity>,
    perplexity: bool,
    optimality_gap: bool,
    repeats: u32,
    jitter: f64,
}

impl Table {
    pub(super) fn of(comparison: &MethodComparison) -> Self {
        Table {
            shown: shown(comparison),
            perplexity: comparison.evaluation.is_some(),
            optimality_gap: comparison.report_gap.is_some(),
            repeats: comparison.repeats.count,
            jitter: comparison.repeats.jitter,
        }
    }

    pub(super) fn head(&self) -> String {
        let columns = self.columns();
        let line = |number: usize, first: &str| {
            let cells = columns.iter().map(|column| pad(column.head[number], column.width));
            format!("{first:<9}{}", cells.collect::<String>()).trim_end().to_string()
        };
        [line(0, ""), line(1, ""), line(2, "method")].join("\n")
    }

    /// The rows of one point, and which method is best.
    pub(super) fn point(&self, point: &PointResult) -> String {
        let columns = self.columns();
        let mut text = String::new();
        for row in &point.rows {
            let cells = columns.iter().map(|column| pad(&(column.cell)(point, row), column.width));
            text += format!("{:<9}{}", row.method, cells.collect::<String>()).trim_end();
            text.push('\n');
        }
        for &quantity in &self.shown {
            text.extend(verdict(point, quantity).map(|line| line + "\n"));
        }
        text
    }

    /// What the numbers and marks mean.
    pub(super) fn legend(&self) -> String {
        match self.repeats {
            1 => "Each method pruned once, which does not show how large the noise is; --repeats 4 measures it.".into(),
            repeats => format!(
                "Mean ± standard deviation over {repeats} repeats with a relative jitter of {:e}.\n* is better than all others \
                 by more than two standard errors of the difference; ~ is within the noise of the best.",
                self.jitter
            ),
        }
    }

    fn columns(&self) -> Vec<Column> {
        let value_width = if self.repeats > 1 { 15 } else { 8 };
        let mut columns = vec![
            column(["", "weights", "zero"], 6, |point, row| match (&row.settings, point.weight_sparsity) {
                (None, _) => percent(0.0),
                (_, Sparsity::Unstructured(p)) => percent(p),
                (_, pattern) => pattern.to_string(),
            }),
            column(["", "activations", "zero"], 6, |point, _| percent(point.activation_sparsity)),
        ];
        if self.perplexity {
            let quantity = Quantity::PerplexityDenseActivations;
            columns.push(column(title(quantity), value_width, move |_, row| value(row, quantity)));
        }
        for &quantity in &self.shown {
            columns.push(column(title(quantity), value_width, move |_, row| value(row, quantity)));
            let width = if quantity == Quantity::Perplexity { 8 } else { 6 };
            columns.push(column(["", "gap to", "dense"], width, move |_, row| {
                let gap = row.quantities[&quantity].gap_to_dense;
                // Rounded first: -0.001 is shown as +0.00.
                let shown = |gap: f64| (100.0 * scale(quantity) * gap).round() / 100.0 + 0.0;
                gap.map_or("-".into(), |gap| format!("{:+.2}", shown(gap)))
            }));
        }
        if self.optimality_gap {
            columns.push(column(["mean", "optimality", "gap"], 6, |_, row| {
                let gaps = &row.optimality_gap;
                let mean = gaps.iter().map(|gap| gap.mean).sum::<f64>() / gaps.len() as f64;
                if gaps.is_empty() { "-".into() } else { format!("{mean:.2}") }
            }));
        }
        columns.push(column(["", "seconds", "to prune"], 6, |_, row| {
            row.seconds_to_prune.as_ref().map_or("-".into(), |seconds| format!("{:.1}", seconds.mean))
        }));
        columns
    }
}

/// What methods are compared by: perplexity, the paper's averages, and each task that is in neither average.
pub(super) fn shown(comparison: &MethodComparison) -> Vec<Quantity> {
    let tasks: Vec<Task> = comparison.tasks.iter().map(|data| data.task).collect();
    let averages = [(Quantity::FiveTasks, &Task::FIVE[..]), (Quantity::SevenTasks, &Task::ALL)];
    let averages = averages.into_iter().filter(|(_, of)| of.iter().all(|task| tasks.contains(task)));
    let averages: Vec<(Quantity, &[Task])> = averages.collect();
    let mut shown: Vec<Quantity> = comparison.evaluation.iter().map(|_| Quantity::Perplexity).collect();
    shown.extend(averages.iter().map(|(quantity, _)| *quantity));
    // A task is shown by itself where no average has it.
    let alone = tasks.iter().filter(|task| !averages.iter().any(|(_, of)| of.contains(task)));
    shown.extend(alone.map(|&task| Quantity::Task(task)));
    shown
}

type Cell = dyn Fn(&PointResult, &MethodResult) -> String;

struct Column {
    head: [&'static str; 3],
    width: usize,
    cell: Box<Cell>,
}

fn column(
    head: [&'static str; 3],
    width: usize,
    cell: impl Fn(&PointResult, &MethodResult) -> String + 'static,
) -> Column {
    let widest = head.iter().map(|line| line.len()).fold(width, usize::max);
    Column { head, width: widest, cell: Box::new(cell) }
}

/// Right-aligned, counted in characters, after a gap of two: however wide a cell is, it does not touch the one before.
fn pad(text: &str, width: usize) -> String {
    format!("  {text:>width$}")
}

/// Three lines that name a quantity.
fn title(quantity: Quantity) -> [&'static str; 3] {
    match quantity {
        Quantity::PerplexityDenseActivations => ["perplexity,", "dense", "activations"],
        Quantity::Perplexity => ["perplexity,", "sparse", "activations"],
        Quantity::FiveTasks => ["mean of", "five", "tasks, %"],
        Quantity::SevenTasks => ["mean of", "seven", "tasks, %"],
        Quantity::Task(task) => ["", task.name(), "%"],
    }
}

/// A quantity in words.
pub(super) fn description(quantity: Quantity) -> String {
    match quantity {
        Quantity::Task(task) => format!("accuracy on {task}, %"),
        other => title(other).join(" "),
    }
}

/// Accuracies are shown in percent.
pub(super) fn scale(quantity: Quantity) -> f64 {
    if quantity.is_accuracy() { 100.0 } else { 1.0 }
}

fn percent(fraction: f64) -> String {
    format!("{} %", (1000.0 * fraction).round() / 10.0)
}

fn value(row: &MethodResult, quantity: Quantity) -> String {
    let measured = &row.quantities[&quantity];
    let scaled = |x: f64| format!("{:.2}", scale(quantity) * x);
    let deviation = measured.estimate.standard_deviation.map(|s| format!(" ± {}", scaled(s)));
    let mark = match measured.standing {
        Some(Standing::Best) => "*",
        Some(Standing::Ambiguous) => "~",
        _ => " ",
    };
    format!("{}{}{mark}", scaled(measured.estimate.mean), deviation.unwrap_or_default())
}

/// Which method is best, as far as the noise allows to say.
fn verdict(point: &PointResult, quantity: Quantity) -> Option<String> {
    let with = |standing| -> Vec<&str> {
        let rows = point.rows.iter().filter(|row| row.quantities[&quantity].standing == Some(standing));
        rows.map(|row| row.method).collect()
    };
    let what = description(quantity);
    match (&with(Standing::Best)[..], &with(Standing::Ambiguous)[..]) {
        ([best], _) => Some(format!("{what}: {best} is best")),
        (_, []) => None,
        (_, ambiguous) => Some(format!("{what}: AMBIGUOUS between {}", ambiguous.join(", "))),
    }
}
