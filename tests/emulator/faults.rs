//! The checks of the kernels have teeth: faults planted in the sources, each of which must be found.

use duogpt::cuda::Cuda;
use half::bf16;

use crate::checks::spmspv::{Case, products_agree, selections_agree};
use crate::checks::{
    activations_f32, cases, layer_agrees, masks_agree, panels_agree, scores_agree, small_sums_are_kept,
    statistics_agree, statistics_are_accurate,
};
use crate::emulator::Emulator;

/// A check of the kernels, at a few sizes that have tails.
fn check(name: &str, device: Emulator) -> Result<(), String> {
    match name {
        "activation" => activations_f32(&device, &[33, 300]),
        "score" => scores_agree(&device, &[33, 129]),
        "mask" => masks_agree(&device, &[33, 129]),
        "panel" => panels_agree(&device, &[33, 66]),
        "statistics" => statistics_agree(&device, &[33, 130])
            .and_then(|()| statistics_are_accurate(&device, &[(1, 33)]))
            .and_then(|()| small_sums_are_kept(&device)),
        "select" => selections_agree::<bf16, _>(&device, &[33, 1100]),
        "spmspv" => {
            let case = |n, k| Case { n, k, weight_sparsity: 0.5, sparsity: 0.3 };
            products_agree::<bf16, _>(&device, &[case(300, 70), case(300, 70), case(31, 129)])
        }
        "layer" => cases()
            .iter()
            .skip(1)
            .take(2)
            .try_for_each(|case| layer_agrees(&Cuda { device: Emulator::like(&device) }, case)),
        _ => unreachable!("no check {name}"),
    }
}

/// File, what stands there, what stands there instead, the check that must find it.
const FAULTS: [(&str, &str, &str, &str); 69] = [
    // Barriers and shuffles.
    ("common.cuh", "histogram[i] = 0;\n        __syncthreads();", "histogram[i] = 0;", "activation"),
    (
        "common.cuh",
        "if (kept) write(j, place);\n        __syncthreads();",
        "if (kept) write(j, place);",
        "activation",
    ),
    (
        "select.cu",
        "squares[threadIdx.x / WARP] = sum;\n    __syncthreads();",
        "squares[threadIdx.x / WARP] = sum;",
        "select",
    ),
    (
        "spmspv.cu",
        "Sums &sums, float *y, float *partial, u32 *arrived, u32 n) {\n    SHARED(u32, last);\n    u32 tile = blockIdx.x, splits = gridDim.y, row = threadIdx.x;\n    __syncthreads();",
        "Sums &sums, float *y, float *partial, u32 *arrived, u32 n) {\n    SHARED(u32, last);\n    u32 tile = blockIdx.x, splits = gridDim.y, row = threadIdx.x;",
        "spmspv",
    ),
    (
        "spmspv.cu",
        "partial[blockIdx.y * 256 + row] = sum;\n        __syncthreads();",
        "partial[blockIdx.y * 256 + row] = sum;",
        "spmspv",
    ),
    ("spmspv.cu", "__threadfence(); // what the block wrote, before it says so", "", "spmspv"),
    ("spmspv.cu", "__threadfence(); // and what the others wrote, after they said so", "", "spmspv"),
    ("spmspv.cu", "__syncwarp(); // the next segment has the same rows on other lanes", "", "spmspv"),
    ("spmspv.cu", "own[row] = 0.0f;\n        __syncwarp();", "own[row] = 0.0f;", "spmspv"),
    (
        "spmspv.cu",
        "u32 place = __shfl_sync(ALL_LANES, of_lane, i + f);",
        "u32 place = __shfl_sync(1u, of_lane, i + f);",
        "spmspv",
    ),
    ("mask.cu", "counts[threadIdx.x] = 0;\n    __syncthreads();", "counts[threadIdx.x] = 0;", "mask"),
    ("mask.cu", "above -= sum;\n    __syncthreads();", "above -= sum;", "mask"),
    ("panel.cu", "first += SLICE) {\n            __syncthreads();", "first += SLICE) {", "panel"),
    (
        "panel.cu",
        "d_slice[i] = inside ? alpha * d[at] : 0.0f;\n            }\n            __syncthreads();",
        "d_slice[i] = inside ? alpha * d[at] : 0.0f;\n            }",
        "panel",
    ),
    (
        "panel.cu",
        "float w_j = __shfl_sync(ALL_LANES, w_[u], j % 32);",
        "float w_j = __shfl_sync(0xffffu, w_[u], j % 32);",
        "panel",
    ),
    ("factor.cu", "    __syncwarp(); // the diagonal is read before it is cleared\n", "", "layer"),
    // Bounds and tails.
    ("common.cuh", "bool kept = j < k && keep(j);", "bool kept = j <= k && keep(j);", "activation"),
    ("spmspv.cu", "if (tile * 256 + row < n) y", "if (tile * 256 + row <= n) y", "spmspv"),
    ("spmspv.cu", "length / warps + (warp < more);", "length / warps;", "spmspv"),
    ("spmspv.cu", "offsets[segment + 1] * 8;", "offsets[segment + 1] * 8 - 8;", "spmspv"),
    ("score.cu", "if (i >= (u64)n * width) return;", "if (i > (u64)n * width) return;", "score"),
    ("score.cu", "if (i >= (u64)n * width) return;", "if (i + 1 >= (u64)n * width) return;", "score"),
    ("panel.cu", "if (real && c < width) {", "if (c < width) {", "panel"),
    ("panel.cu", "bool inside = real && c < width;", "bool inside = c < width;", "panel"),
    (
        "statistics.cu",
        "if (j >= k) return;\n    float sum",
        "if (j > k) return;\n    float sum",
        "statistics",
    ),
    ("mask.cu", "u32 run = (n + 255) / 256", "u32 run = n / 256", "mask"),
    // Strides and indices.
    ("score.cu", "i / width * stride + column", "i / width * width + column", "score"),
    ("factor.cu", "(u64)order[i / k] * k + order[i % k]", "(u64)order[i / k] * k + i % k", "layer"),
    (
        "panel.cu",
        "u64 row = (u64)blockIdx.x * 8 + threadIdx.x / WARP;",
        "u64 row = (u64)blockIdx.x * 4 + threadIdx.x / WARP;",
        "panel",
    ),
    (
        "common.cuh",
        "if (w < warp) place += kept_by_warp[w];",
        "if (w <= warp) place += kept_by_warp[w];",
        "select",
    ),
    ("common.cuh", "rank = found.rank;", "rank = rank;", "select"),
    ("spmspv.cu", "LISTED ? columns[first + lane]", "LISTED ? columns[first]", "spmspv"),
    ("spmspv.cu", "__popc(words[i] & (odd - 1))", "__popc(words[i] & (even - 1))", "spmspv"),
    ("spmspv.cu", "load_if<-1>", "load_if<0>", "spmspv"),
    ("spmspv.cu", "lane / 16 * 128", "lane / 16 * 64", "spmspv"),
    ("spmspv.cu", "if (row == 0) arrived[tile] = 0;", "", "spmspv"),
    // Comparisons and signs.
    ("common.cuh", "+ 0x7fff + (bits >> 16 & 1)", "+ 0x8000", "select"),
    ("select.cu", "key >= lowest", "key > lowest", "select"),
    ("select.cu", "<= threshold)", "< threshold)", "select"),
    ("select.cu", "return kept && key != 0;", "return kept;", "select"),
    ("select.cu", "sum / k + eps", "sum / k - eps", "select"),
    ("spmspv.cu", "== splits - 1;", "== splits - 2;", "spmspv"),
    ("activation.cu", "keep = key >= threshold", "keep = key > threshold", "activation"),
    (
        "mask.cu",
        "mask[at] = order_key(s[at]) <= selection[0];",
        "mask[at] = order_key(s[at]) < selection[0];",
        "mask",
    ),
    ("mask.cu", "key == threshold && place < take", "key == threshold && place <= take", "mask"),
    (
        "panel.cu",
        "if (c > j) {\n                        float",
        "if (c > j + 1) {\n                        float",
        "panel",
    ),
    ("panel.cu", "w_[v] += residual - compensation;", "w_[v] += residual + compensation;", "panel"),
    ("panel.cu", "before_[u] = w_j;", "before_[u] = q;", "layer"),
    ("panel.cu", "(other == s_[v] && i < 32 * v + lane)", "(other == s_[v] && i <= 32 * v + lane)", "panel"),
    ("factor.cu", "(a[p] - b + 2.0f * c)", "(a[p] - b - 2.0f * c)", "layer"),
    ("factor.cu", "if (j <= p) row[j] = 0.0f;", "if (j < p) row[j] = 0.0f;", "layer"),
    ("statistics.cu", "sum += x * x;", "sum += x;", "statistics"),
    ("statistics.cu", "dense[i] - sparse[i]", "sparse[i] - dense[i]", "statistics"),
    // Asynchronous copies and tensor cores.
    ("statistics.cu", "copy_wait<STAGES - 2>();", "copy_wait<STAGES - 1>();", "statistics"),
    ("statistics.cu", "        copy_commit();\n\n        u32 columns", "\n        u32 columns", "statistics"),
    ("statistics.cu", "__syncthreads(); // this slab", "// this slab", "statistics"),
    (
        "statistics.cu",
        "sums[threadIdx.x] = sum;\n    __syncthreads();",
        "sums[threadIdx.x] = sum;",
        "statistics",
    ),
    (
        "statistics.cu",
        "left / 8 + 2 * pair, lane / 8 % 2, lane / 16",
        "left / 8 + 2 * pair, lane / 16, lane / 8 % 2",
        "statistics",
    ),
    (
        "statistics.cu",
        "column[n % 2 * 2], column[n % 2 * 2 + 1]",
        "column[n % 2 * 2 + 1], column[n % 2 * 2]",
        "statistics",
    ),
    (
        "statistics.cu",
        "operand * OPERAND + t * GROUPS + (group ^ t % 8)",
        "operand * OPERAND + t * GROUPS + group",
        "statistics",
    ),
    ("statistics.cu", "stages + slab % STAGES * STAGE + operand", "stages + operand", "statistics"),
    ("statistics.cu", "x -= widen(part);", "x = 0.0f;", "statistics"),
    ("statistics.cu", "if (q >= Q) continue;", "if (q >= Q || p + q > 1) continue;", "statistics"),
    ("statistics.cu", "total[m][n][i] += sum[n][i];", "total[m][n][i] = sum[n][i];", "statistics"),
    ("statistics.cu", "+ (x - added) + *low;", "+ (x - added);", "statistics"),
    (
        "statistics.cu",
        "u32 end = (first + tokens + CHUNK - 1) / CHUNK * CHUNK;",
        "u32 end = first + tokens;",
        "statistics",
    ),
    ("statistics.cu", "bool real = t < tokens && j < k;", "bool real = t <= tokens && j < k;", "statistics"),
    ("statistics.cu", "if (row < k && column < k)", "if (row < k && column <= k)", "statistics"),
    ("statistics.cu", "blockIdx.x > blockIdx.y", "blockIdx.x >= blockIdx.y", "statistics"),
];

#[test]
fn every_planted_fault_is_found() {
    let missed: Vec<String> = FAULTS
        .iter()
        .filter(|(file, from, to, name)| {
            let outcome = check(name, Emulator::with_fault(3, file, from, to));
            println!("{file}: `{to}`: {}", outcome.as_ref().err().map_or("MISSED", |found| found));
            // A fault that does not compile tests nothing.
            outcome.as_ref().err().is_none_or(|found| found.contains("do not compile"))
        })
        .map(|(file, _, to, _)| format!("{file}: `{to}`"))
        .collect();
    assert!(missed.is_empty(), "not found: {missed:#?}");
}

/// Every result of every kernel, replaced by zeros.
const ZEROED: [(&str, &str, &str, &str); 22] = [
    (
        "activation.cu",
        "out[j] = keep ? x[j] : Magnitude<T>::zero();",
        "out[j] = Magnitude<T>::zero();",
        "activation",
    ),
    ("activation.cu", "kept[place] = j;", "kept[place] = 0;", "activation"),
    ("activation.cu", "count[blockIdx.x] = total;", "count[blockIdx.x] = 0;", "activation"),
    ("score.cu", "s[at] = square * scale[column];", "s[at] = 0.0f;", "score"),
    ("mask.cu", "mask[at] = order_key(s[at]) <= selection[0];", "mask[at] = 0;", "mask"),
    ("mask.cu", "mask[at] = key < threshold || (key == threshold && place < take);", "mask[at] = 0;", "mask"),
    ("panel.cu", "w[c] = w_[u];", "w[c] = 0.0f;", "panel"),
    ("panel.cu", "e[c] = e_[u];", "e[c] = 0.0f;", "panel"),
    ("panel.cu", "before[c] = before_[u];", "before[c] = 0.0f;", "panel"),
    (
        "factor.cu",
        "upper[i] = i % k >= i / k ? reversed[(u64)k * k - 1 - i] : 0.0f;",
        "upper[i] = 0.0f;",
        "layer",
    ),
    ("factor.cu", "scale[p] = 1.0f / (l * l) + alpha * (a[p] - b + 2.0f * c);", "scale[p] = 0.0f;", "layer"),
    ("statistics.cu", "squares[j] += sum;", "squares[j] = 0.0f;", "statistics"),
    ("statistics.cu", "to[p * apart] = part.bits;", "to[p * apart] = 0;", "statistics"),
    (
        "statistics.cu",
        "squares[(u64)blockIdx.y * k + j] = sum;",
        "squares[(u64)blockIdx.y * k + j] = 0;",
        "statistics",
    ),
    ("statistics.cu", "*high = sum + error;", "*high = 0.0f;", "statistics"),
    ("statistics.cu", "out[i] = (high[at] + low[at]) / count;", "out[i] = 0.0f;", "statistics"),
    ("select.cu", "h[j] = nearest<T>(scaled * widen(g[j]));", "h[j] = Magnitude<T>::zero();", "select"),
    ("select.cu", "columns[place] = j;", "columns[place] = 0;", "select"),
    ("select.cu", "values[place] = widen(h[j]);", "values[place] = 0.0f;", "select"),
    ("select.cu", "*count = total;", "*count = 0;", "select"),
    ("spmspv.cu", "y[tile * 256 + row] = sum;", "y[tile * 256 + row] = 0.0f;", "spmspv"),
    (
        "spmspv.cu",
        "partial[blockIdx.y * 256 + row] = sum;",
        "partial[blockIdx.y * 256 + row] = 0.0f;",
        "spmspv",
    ),
];

#[test]
fn no_result_can_be_zeros() {
    for (file, from, to, name) in ZEROED {
        let found = check(name, Emulator::with_fault(4, file, from, to)).expect_err(to);
        assert!(!found.contains("do not compile"), "{file}: {found}");
    }
}

#[test]
fn without_a_fault_the_same_checks_pass() {
    for name in ["activation", "score", "mask", "panel", "statistics", "layer", "select", "spmspv"] {
        check(name, Emulator::new(5)).unwrap_or_else(|found| panic!("{name}: {found}"));
    }
}
