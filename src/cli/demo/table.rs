//! The demo's table, and what it shows.

use crate::evaluate::comparison::{MethodResult, PointResult, Quantity};

/// Perplexities: a row per method, a pair of columns (dense and sparse activations) per sparsity.
pub(super) fn table(points: &[PointResult]) -> String {
    let mut rows = vec!["weights pruned".to_string(), "activations pruned".to_string()];
    let methods = || points.iter().take(1).flat_map(|point| &point.rows).enumerate();
    rows.extend(methods().map(|(_, row)| match row.settings {
        None => "none (dense model)".to_string(),
        Some(_) => row.method.to_string(),
    }));
    let width = rows.iter().map(String::len).max().unwrap_or(0);
    rows.iter_mut().for_each(|row| *row = format!("{row:<width$}"));
    for point in points {
        let sparsity = percent(point);
        rows[0] += &format!("{sparsity:>20}");
        rows[1] += &format!("{:>11}{sparsity:>9}", "0 %");
        for (number, _) in methods() {
            let [dense, sparse] = [Quantity::PerplexityDenseActivations, Quantity::Perplexity]
                .map(|q| value(&point.rows[number], q));
            rows[2 + number] += &format!("{dense:>11.2}{sparse:>9.2}");
        }
    }
    rows.join("\n")
}

/// Which method is best, with sparse and with dense activations.
pub(super) fn conclusion(points: &[PointResult]) -> String {
    let best = |quantity| -> String {
        let mut wins: Vec<(&str, Vec<String>)> = Vec::new();
        for point in points {
            let pruned = point.rows.iter().filter(|row| row.settings.is_some());
            let Some(best) = pruned.min_by(|a, b| value(a, quantity).total_cmp(&value(b, quantity))) else {
                continue;
            };
            match wins.iter_mut().find(|(method, _)| *method == best.method) {
                Some((_, sparsities)) => sparsities.push(percent(point)),
                None => wins.push((best.method, vec![percent(point)])),
            }
        }
        let wins = wins.iter().map(|(method, sparsities)| format!("{method} at {}", list(sparsities)));
        wins.collect::<Vec<_>>().join(", ")
    };
    format!(
        "When activations are pruned too, the lowest perplexity of the methods is that of {};\nwhen only weights are \
         pruned, it is that of {}.\nEach method ran once, so a difference of about 1 % or less may be chance; \
         `duogpt compare --repeats 4` measures that.",
        best(Quantity::Perplexity),
        best(Quantity::PerplexityDenseActivations)
    )
}

/// A perplexity of a row.
pub(super) fn value(row: &MethodResult, quantity: Quantity) -> f64 {
    row.quantities[&quantity].estimate.mean
}

/// The sparsity of a point, which is that of weights and activations.
pub(super) fn percent(point: &PointResult) -> String {
    format!("{} %", (1000.0 * point.activation_sparsity).round() / 10.0)
}

/// "a", "a and b", "a, b and c".
fn list(items: &[String]) -> String {
    match items {
        [first @ .., last] if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        _ => items.concat(),
    }
}
