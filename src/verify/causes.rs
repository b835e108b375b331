//! What usually goes wrong at a stage.

/// The usual causes of a failure whose first wrong step is this stage of the test vectors.
pub fn usual_cause(stage: &str) -> &'static str {
    match stage {
        "statistics" => {
            "a hook that never fired (H stays zero); a mean over tokens instead of sequences; the factor 2 left out or \
             doubled; sums held in half precision; dX taken the wrong way round"
        }
        "dead" => "channels whose diagonal of H is 0 not told apart, or marked after damping",
        "permutation" => {
            "ascending instead of descending; the inverse permutation; sorted before dead channels got the diagonal 1"
        }
        "damping" => {
            "the mean of the diagonal taken before dead channels got 1, or after an earlier damping; added twice"
        }
        "factor" => {
            "the factor of H instead of its inverse; lower where upper is expected; the inverse itself; an identity after \
             a failed factorisation"
        }
        "drift" => "dX X^T transposed; alpha left out; the diagonal of Q kept in U",
        "coefficients" => "b summed over rows of the transpose; the factor 2 of c; alpha applied twice",
        "score" => {
            "scores of the original weights instead of the compensated ones; 1 / L_jj without the square; the terms of \
             the output residual left out; an update with the wrong sign in the block before"
        }
        "mask" => {
            "strictly below the threshold instead of up to it; one weight more or fewer; a threshold per row instead of \
             per block; N:M groups counted from another column"
        }
        "grid" => {
            "the range clamped otherwise; a grid found after dead channels were zeroed; a group's grid found on \
             weights of another moment; zero not rounded"
        }
        "codes" => "rounding half away from zero instead of to even; codes clamped to another range",
        "err" => "W_j divided by the square of L_jj, or taken after it was pruned",
        "block_weight" => {
            "the lazy update left out, with the wrong sign, or with weights before pruning or rounding"
        }
        "metric" => "the norm without its root; a mean over tokens instead of sequences",
        "search" => "the bisection started or stopped elsewhere; the share taken of the whole layer",
        "threshold" => "an index rounded up; the sparsity's product formed in single precision",
        "histogram" => "bins over magnitudes instead of signed values; outliers counted in the inner bins",
        "output" => {
            "the permutation not undone; a mask that is not applied; compensation that is not written back; the result \
             rounded to half precision"
        }
        "call" => "a setting that the port does not know; something other than arrays by name as its result",
        "refused" => "a setting outside its range; an input that is not finite",
        _ => "no result was written for this case; the file is not what its name says",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_of_the_schema_has_a_cause_of_its_own() {
        let schema =
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/vectors/v1/case.schema.json"));
        let schema: serde_json::Value = serde_json::from_str(schema).unwrap();
        let stages = schema["$defs"]["stage"]["enum"].as_array().unwrap();
        assert!(!stages.is_empty());
        let causes: std::collections::BTreeSet<_> =
            stages.iter().map(|stage| usual_cause(stage.as_str().unwrap())).collect();
        assert_eq!(causes.len(), stages.len());
        assert!(!causes.contains(usual_cause("no stage")));
    }
}
