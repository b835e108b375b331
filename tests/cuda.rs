//! Every kernel and its host side on the emulator, against the reference; and the error exits.

mod checks;
mod emulator;
#[path = "emulator/checks.rs"]
mod emulator_checks;
#[path = "emulator/faults.rs"]
mod faults;

use approx::abs_diff_eq;
use checks::spmspv::{
    empty_products_agree, product_cases, products_agree, selections_agree, selections_of_what_is_no_number,
};
use checks::*;
use duogpt::cuda::Cuda;
use duogpt::cuda::activation::activation;
use duogpt::cuda::device::Buffer;
use duogpt::cuda::mask::mask;
use duogpt::cuda::score::BlockColumns;
use duogpt::cuda::statistics::{CAPACITY, Inputs, Statistics as DeviceStatistics};
use duogpt::reference::activation::prune_activations;
use duogpt::reference::{PruneConfig, Threshold};
use emulator::Emulator;
use half::{bf16, f16};
use ndarray::Array2;

const SIZES: [usize; 9] = [1, 2, 31, 32, 33, 127, 128, 129, 255];

/// As [`layer_agrees`], and no device memory is left behind.
fn layer_on_emulator(seed: u64, case: &Case) -> Outcome {
    let cuda = Cuda { device: Emulator::new(seed) };
    layer_agrees(&cuda, case)?;
    match cuda.device.in_use() {
        (0, 0) => Ok(()),
        left => Err(format!("device memory left behind: {left:?}")),
    }
}

#[test]
fn activation_f32() {
    activations_f32(&Emulator::new(1), &SIZES).unwrap();
    activations_f32(&Emulator::new(2), &[688]).unwrap();
}

#[test]
fn activation_bf16() {
    activations_agree::<bf16, _>(&Emulator::new(3), bf16::from_f32, bf16::to_f32, &SIZES).unwrap();
}

#[test]
fn activation_f16() {
    activations_agree::<f16, _>(&Emulator::new(4), f16::from_f32, f16::to_f32, &SIZES).unwrap();
}

#[test]
fn activation_of_what_is_no_number() {
    let device = Emulator::new(5);
    for x in
        [[f32::NAN, 1.0, -3.0, 2.0], [f32::NAN, f32::NAN, f32::NAN, 2.0], [f32::INFINITY, 1.0, -0.0, 0.0]]
    {
        let mut expected = Array2::from_shape_vec((1, 4), x.to_vec()).unwrap();
        prune_activations(expected.view_mut(), 0.5);
        let on_device = Buffer::from_host(&device, &x).unwrap();
        let kept = activation(&device, &on_device, (1, 4), 0.5).unwrap();
        assert_eq!(bits(&kept.x.to_host(&device).unwrap()), bits(&flat(&expected)));
    }
}

/// Beyond a tile, and beyond two.
const PRODUCT_SIZES: [usize; 11] = [1, 2, 31, 32, 33, 127, 128, 129, 255, 257, 688];

#[test]
fn select_f32() {
    let device = Emulator::new(80);
    selections_agree::<f32, _>(&device, &PRODUCT_SIZES).unwrap();
    selections_of_what_is_no_number::<f32, _>(&device).unwrap();
    selections_agree::<f32, _>(&device, &[2500]).unwrap(); // more than one entry per thread
}

#[test]
fn select_bf16() {
    let device = Emulator::new(81);
    selections_agree::<bf16, _>(&device, &PRODUCT_SIZES).unwrap();
    selections_of_what_is_no_number::<bf16, _>(&device).unwrap();
}

#[test]
fn select_f16() {
    let device = Emulator::new(82);
    selections_agree::<f16, _>(&device, &PRODUCT_SIZES).unwrap();
    selections_of_what_is_no_number::<f16, _>(&device).unwrap();
}

#[test]
fn products_f32() {
    let device = Emulator::new(83);
    products_agree::<f32, _>(&device, &product_cases(&PRODUCT_SIZES)).unwrap();
    empty_products_agree::<f32, _>(&device).unwrap();
}

#[test]
fn products_bf16() {
    let device = Emulator::new(84);
    products_agree::<bf16, _>(&device, &product_cases(&PRODUCT_SIZES)).unwrap();
    empty_products_agree::<bf16, _>(&device).unwrap();
}

#[test]
fn products_f16() {
    let device = Emulator::new(85);
    products_agree::<f16, _>(&device, &product_cases(&PRODUCT_SIZES)).unwrap();
    empty_products_agree::<f16, _>(&device).unwrap();
}

#[test]
fn score_at_all_sizes() {
    scores_agree(&Emulator::new(6), &SIZES).unwrap();
}

#[test]
fn mask_at_all_sizes() {
    masks_agree(&Emulator::new(8), &SIZES).unwrap();
}

#[test]
fn mask_of_many_rows() {
    let device = Emulator::new(9);
    let block = BlockColumns { n: 700, k: 8, first: 0, width: 8 }; // more than two rows for each thread of the scan
    let scores = integers(1, 700, 8);
    let s = Buffer::from_host(&device, &flat(&scores)).unwrap();
    let out = Buffer::<u8, _>::new(&device, 5600).unwrap();
    mask(&device, block, &s, Threshold::Exact, 0.5, &out).unwrap();
    let expected = Threshold::Exact.select(scores.view(), 0.5).mapv(u8::from);
    same("mask", &out.to_host(&device).unwrap(), &flat(&expected)).unwrap();
}

#[test]
fn panel_at_all_sizes() {
    panels_agree(&Emulator::new(10), &SIZES).unwrap();
}

#[test]
fn panel_of_the_largest_block() {
    panels_agree(&Emulator::new(11), &[256]).unwrap();
}

#[test]
fn statistics_at_all_sizes() {
    statistics_agree(&Emulator::new(12), &SIZES).unwrap();
}

#[test]
fn statistics_of_random_numbers() {
    let shapes = [(1, 33), (2, 129), (33, 1), (31, 128), (300, 40)];
    statistics_are_accurate(&Emulator::new(13), &shapes).unwrap();
}

#[test]
fn sums_keep_what_a_float_would_lose() {
    small_sums_are_kept(&Emulator::new(14)).unwrap();
}

/// The largest error of an SGEMM that adds the tokens one by one, over the largest entry of H.
fn error_of_an_sgemm(x: &Array2<f32>) -> f64 {
    let exact = x.mapv(f64::from).t().dot(&x.mapv(f64::from));
    let columns = x.t().as_standard_layout().to_owned();
    let found = Array2::from_shape_fn(exact.dim(), |(i, j)| {
        columns.row(i).iter().zip(columns.row(j)).fold(0.0f32, |sum, (a, b)| a.mul_add(*b, sum))
    });
    error(&found, &exact)
}

/// H of positive numbers on the device and exactly, and the error of an SGEMM. Tensor cores cut where they add, the emulated
/// ones too: where all products are positive, what is cut piles up.
fn positive_sums(device: &Emulator, tokens: usize, inputs: Inputs) -> (Array2<f32>, Array2<f64>, f64) {
    let x = rounded(random(7, tokens, 24).mapv(f32::abs), inputs);
    assert_eq!(Inputs::of(&[x.view()]), inputs);
    let mut statistics = DeviceStatistics::new(device, 24, false).unwrap();
    statistics.update(device, x.view(), x.view()).unwrap();
    let found = statistics.hessian(device).unwrap().to_host(device).unwrap();
    let exact = x.mapv(f64::from).t().dot(&x.mapv(f64::from));
    (Array2::from_shape_vec((24, 24), found).unwrap(), exact, error_of_an_sgemm(&x))
}

#[test]
fn the_error_of_sums_does_not_grow_and_stays_below_that_of_an_sgemm() {
    let device = Emulator::new(15);
    for inputs in INPUTS {
        for tokens in [256, 1024, 4096, 16384] {
            let (found, exact, sgemm) = positive_sums(&device, tokens, inputs);
            // The bound of kernels/statistics.cu: all terms are positive, so the sum of their magnitudes is the entry.
            let slabs = tokens.min(CAPACITY).div_ceil(if inputs == Inputs::F32 { 16 } else { 32 });
            let bound = (22.0 + slabs as f64 / 2.0 + 1.0) * 2f64.powi(-23);
            for ((place, found), exact) in found.indexed_iter().zip(&exact) {
                let close = abs_diff_eq!(f64::from(*found), *exact, epsilon = bound * exact);
                assert!(close, "{place:?}: {found} for {exact}");
            }
            let here = error(&found, &exact);
            println!("{inputs:?}, {tokens} tokens: error {here:.2e}, of an SGEMM {sgemm:.2e}");
            assert!(here <= sgemm, "{inputs:?}, {tokens} tokens: error {here:.2e}, of an SGEMM {sgemm:.2e}");
        }
    }
}

#[test]
fn sums_that_stay_in_tensor_cores_are_worse_than_an_sgemm() {
    let faults = [
        ("statistics.cu", "float sum[4][4] = {};", "float(&sum)[4][4] = total[m];"),
        ("statistics.cu", "total[m][n][i] += sum[n][i];", ";"),
    ];
    let device = Emulator::with_faults(16, &faults);
    let (found, exact, sgemm) = positive_sums(&device, 4096, Inputs::F16);
    let here = error(&found, &exact);
    println!("error {here:.2e}, of an SGEMM {sgemm:.2e}");
    assert!(here > sgemm);
}

#[test]
fn inputs_are_taken_for_what_they_are() {
    let of =
        |x: f32| Inputs::of(&[Array2::from_elem((2, 3), 1.0).view(), Array2::from_elem((1, 3), x).view()]);
    assert_eq!(of(1.0 + 2f32.powi(-7)), Inputs::Bf16);
    assert_eq!(of(2f32.powi(120)), Inputs::Bf16);
    assert_eq!(of(1.0 + 2f32.powi(-8)), Inputs::F16);
    assert_eq!(of(-32736.0), Inputs::F16);
    assert_eq!(of(33000.0), Inputs::F32); // differences need not be f16
    assert_eq!(of(1.0 + 2f32.powi(-11)), Inputs::F32);
    assert_eq!(of(f32::NAN), Inputs::F32);
    assert_eq!(of(f32::INFINITY), Inputs::F32);
}

#[test]
fn statistics_of_sequences_of_different_types() {
    let device = Emulator::new(17);
    let mut found = DeviceStatistics::new(&device, 5, false).unwrap();
    let mut sum = Array2::<f64>::zeros((5, 5));
    let wide = integers(4, 1, 5).mapv(|x| 2049.0 * x.signum());
    for x in [integers(1, 40, 5), integers(2, 9, 5) * 257.0, integers(3, 12, 5), wide] {
        found.update(&device, x.view(), x.view()).unwrap();
        sum += &x.mapv(f64::from).t().dot(&x.mapv(f64::from));
    }
    let found = found.hessian(&device).unwrap().to_host(&device).unwrap();
    same("H", &found, &flat(&sum.mapv(|x| (x / 4.0) as f32))).unwrap();
}

/// Wider than one block of the triangular products of `cuda::factor`.
#[test]
fn a_wide_layer_with_few_rows() {
    let case = Case {
        n: 3,
        k: 1100,
        config: PruneConfig::default(),
        residual: true,
        dead: &[5],
        inputs: Inputs::Bf16,
    };
    layer_on_emulator(40, &case).unwrap();
}

#[test]
fn another_order_of_threads_gives_the_same_bits() {
    let case = &cases()[1];
    let [a, b] = [50, 60].map(|seed| {
        let cuda = Cuda { device: Emulator::new(seed) };
        run::<f32, _>(&cuda, case, None, None).unwrap()
    });
    assert_eq!(bits(&flat(&a.weight)), bits(&flat(&b.weight)));
    assert_eq!((a.mask, bits(&flat(&a.score))), (b.mask, bits(&flat(&b.score))));
}

#[test]
fn a_kernel_that_does_not_compile_is_an_error() {
    let device = Emulator::with_fault(1, "score.cu", "w[at] * w[at];", "w[at] * ;");
    let error = scores_agree(&device, &[2]).unwrap_err();
    assert!(error.contains("score.cu:"), "{error}");
}
