//! The emulator finds what it is there to find, and names thread and line.

use duogpt::cuda::DeviceError;
use duogpt::cuda::KernelFile;
use duogpt::cuda::device::{Argument, Buffer, Device, Launch};

use half::bf16;
use ndarray::Array2;

use crate::emulator::Emulator;

static PLANTED: KernelFile = KernelFile {
    name: "planted.cu",
    // The tests below name lines: the first is the one with `typedef`.
    source: r#"typedef float Row[64];
extern "C" __global__ void neighbours(float *x, u32 barrier) {
    SHARED(Row, row);
    row[threadIdx.x] = threadIdx.x;
    if (barrier) __syncthreads();
    x[threadIdx.x] = row[(threadIdx.x + 1) % 64];
}
extern "C" __global__ void same_word(float *x) {
    x[threadIdx.x / 2] = threadIdx.x;
}
extern "C" __global__ void across_blocks(float *x) {
    x[threadIdx.x] = blockIdx.x;
}
extern "C" __global__ void too_far(float *x, u32 n) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) x[i] = i;
}
extern "C" __global__ void too_early(float *x) {
    float before = *(x - 1);
    x[0] = before;
}
extern "C" __global__ void never_written(float *x) {
    SHARED(Row, row);
    if (threadIdx.x != 5) row[threadIdx.x] = 1.0f;
    __syncthreads();
    x[threadIdx.x] = row[threadIdx.x];
}
extern "C" __global__ void shared_too_far(float *x) {
    SHARED(Row, row);
    row[threadIdx.x + 1] = 1.0f;
    x[threadIdx.x] = 0.0f;
}
extern "C" __global__ void divergent_shuffle(float *x) {
    float value = threadIdx.x;
    if (threadIdx.x % 32 < 16)
        value = __shfl_sync(0xffffffffu, value, 0);
    else
        value = __shfl_sync(0xffffffffu, value, 1);
    x[threadIdx.x] = value;
}
extern "C" __global__ void mask_without_me(float *x) {
    x[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, 0);
}
extern "C" __global__ void lane_gone(float *x) {
    if (threadIdx.x == 3) return;
    x[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}
extern "C" __global__ void half_a_barrier(float *x) {
    if (threadIdx.x < 32) __syncthreads();
    else x[__shfl_sync(0xffffffffu, threadIdx.x, 0)] = 1.0f;
    if (threadIdx.x >= 32) __syncthreads();
}
extern "C" __global__ void waits_for_ever(float *x) {
    if (threadIdx.x < 32 || threadIdx.x == 63) __syncthreads();
    else __shfl_sync(0xffffffffu, 1, 31);
    x[0] = 1.0f;
}
extern "C" __global__ void lanes_in_turn(float *x, u32 barrier) {
    typedef float Lane[32];
    SHARED(Lane, lanes);
    lanes[threadIdx.x] = threadIdx.x;
    if (barrier) __syncwarp();
    x[threadIdx.x] = lanes[31 - threadIdx.x];
}
extern "C" __global__ void counts(u32 *x, u32 atomic) {
    if (atomic) atomicAdd(x, 1u);
    else *x = *x + 1;
}
extern "C" __global__ void misaligned(float *x) {
    *(float *)((u8 *)x + 2) = 1.0f;
}
extern "C" __global__ void waits_at_a_shuffle(float *x) {
    if (threadIdx.x < 31) x[threadIdx.x] = __shfl_sync(0xffffffffu, 1.0f, 0);
    else __syncthreads();
}
extern "C" __global__ void bytes_beside_each_other(u8 *x) {
    x[threadIdx.x] = threadIdx.x;
}
extern "C" __global__ void read_in_turn_then_written(float *x, u32 barrier) {
    typedef float Word[1];
    SHARED(Word, word);
    if (threadIdx.x == 0) word[0] = 1.0f;
    __syncwarp();
    if (threadIdx.x == 1) x[1] = word[0];
    if (barrier) __syncwarp();
    if (threadIdx.x == 2) {
        x[2] = word[0];
        word[0] = 2.0f;
    }
}
// x[0]: how many blocks are done; x[1 + b]: what block b found; the last one adds up.
extern "C" __global__ void last_block_sums(u32 *x, u32 without) {
    SHARED(u32, last);
    if (threadIdx.x == 1) x[1 + blockIdx.x] = 10 + blockIdx.x;
    if (without != 1) __syncthreads();
    if (threadIdx.x == 0) {
        if (without != 2) __threadfence();
        last = atomicAdd(x, 1u) == gridDim.x - 1;
        if (without != 3) __threadfence();
    }
    __syncthreads();
    if (!last || threadIdx.x != 2) return;
    u32 sum = 0;
    for (u32 b = 0; b < gridDim.x; b++) sum += x[1 + b];
    x[7] = sum;
}
typedef Eight Rows[32];
extern "C" __global__ void copies(u32 *x, u32 fault) {
    SHARED(Rows, rows);
    u32 t = threadIdx.x, neighbour = (t + 1) % 32, before = 0;
    if (fault == 3) {
        rows[t].pairs[0] = t;
        __syncthreads();
        before = rows[neighbour].pairs[0];
    }
    copy_async(&rows[t], (const Eight *)x + t);
    copy_commit();
    copy_commit();
    if (fault == 1) copy_wait<2>();
    else copy_wait<1>();
    if (fault != 2) __syncthreads();
    x[128 + t] = rows[neighbour].pairs[0] + before;
}
extern "C" __global__ void matrices(u32 *x) {
    SHARED(Rows, rows);
    for (u32 i = 0; i < 4; i++) rows[threadIdx.x].pairs[i] = x[4 * threadIdx.x + i];
    __syncthreads();
    u32 out[4];
    load_matrices(out, &rows[threadIdx.x]);
    for (u32 i = 0; i < 4; i++) x[128 + 4 * threadIdx.x + i] = out[i];
}
extern "C" __global__ void product(u32 *x) {
    const u16 *a = (const u16 *)x, *b = a + 256; // 16 x 16 and 16 x 8, row-major; then C, 16 x 8
    float *c = (float *)(x + 192);
    u32 g = threadIdx.x / 4, t = threadIdx.x % 4 * 2;
    auto pair = [](u32 low, u32 high) { return low | high << 16; };
    u32 rows[4], columns[2];
    for (u32 i = 0; i < 4; i++) {
        const u16 *at = a + (g + i % 2 * 8) * 16 + t + i / 2 * 8;
        rows[i] = pair(at[0], at[1]);
    }
    for (u32 i = 0; i < 2; i++) columns[i] = pair(b[(t + 8 * i) * 8 + g], b[(t + 8 * i + 1) * 8 + g]);
    float sums[4];
    for (u32 i = 0; i < 4; i++) sums[i] = c[(g + i / 2 * 8) * 8 + t + i % 2];
    multiply_bf16(sums, rows, columns[0], columns[1]);
    for (u32 i = 0; i < 4; i++) c[(g + i / 2 * 8) * 8 + t + i % 2] = sums[i];
}
"#,
};

fn run(kernel: &str, blocks: u32, threads: u32, len: usize, extra: Option<u32>) -> Result<Vec<u32>, String> {
    run_on(&vec![0; len], kernel, blocks, threads, extra)
}

fn run_on(
    x: &[u32],
    kernel: &str,
    blocks: u32,
    threads: u32,
    extra: Option<u32>,
) -> Result<Vec<u32>, String> {
    let device = Emulator::new(7);
    let x = Buffer::from_host(&device, x).unwrap();
    let mut arguments = vec![x.argument(&device)];
    arguments.extend(extra.map(Argument::U32));
    match device.launch(&Launch { file: &PLANTED, kernel, grid: (blocks, 1), block: threads, arguments }) {
        Ok(()) => Ok(x.to_host(&device).unwrap()),
        Err(DeviceError::Failed { detail, .. }) => Err(detail),
        Err(error) => panic!("{error}"),
    }
}

fn refused(outcome: Result<Vec<u32>, String>, parts: &[&str]) {
    let report = outcome.expect_err("the fault was not found");
    for part in parts {
        assert!(report.contains(part), "`{part}` is not in: {report}");
    }
}

#[test]
fn a_missing_barrier_is_a_race() {
    let right = run("neighbours", 1, 64, 64, Some(1)).unwrap();
    let expected: Vec<u32> = (0..64u32).map(|i| (((i + 1) % 64) as f32).to_bits()).collect();
    assert_eq!(right, expected);
    refused(run("neighbours", 1, 64, 64, Some(0)), &["block 0 thread ", "`row`"]);
}

#[test]
fn a_race_names_both_threads_and_the_line() {
    refused(
        run("same_word", 1, 64, 64, None),
        &["race: writes", "argument 0", "which block 0 thread", "planted.cu:9"],
    );
    refused(run("across_blocks", 2, 32, 32, None), &["race: writes", "planted.cu:12"]);
}

#[test]
fn a_missing_barrier_of_a_warp_is_a_race() {
    let right = run("lanes_in_turn", 1, 32, 32, Some(1)).unwrap();
    assert_eq!(right[0], 31.0f32.to_bits());
    refused(run("lanes_in_turn", 1, 32, 32, Some(0)), &["`lanes`"]);
}

#[test]
fn atomics_do_not_race_with_each_other_and_plain_additions_do() {
    assert_eq!(run("counts", 3, 64, 1, Some(1)).unwrap(), [192]);
    refused(run("counts", 1, 64, 1, Some(0)), &["race: ", "planted.cu:67"]);
}

#[test]
fn a_read_behind_a_barrier_of_the_warp_stands_for_those_before_it() {
    let right = run("read_in_turn_then_written", 1, 32, 32, Some(1)).unwrap();
    assert_eq!(right[1..3], [1.0f32.to_bits(); 2]);
    refused(run("read_in_turn_then_written", 1, 32, 32, Some(0)), &["race: ", "shared `word`"]);
}

#[test]
fn blocks_meet_through_an_atomic_between_two_fences_only() {
    assert_eq!(run("last_block_sums", 3, 32, 8, Some(0)).unwrap()[7], 33);
    for without in 1..4 {
        refused(
            run("last_block_sums", 3, 32, 8, Some(without)),
            &["race: reads", "argument 0", "planted.cu:"],
        );
    }
}

#[test]
fn out_of_bounds_names_thread_line_and_place() {
    assert_eq!(run("too_far", 2, 32, 41, Some(40)).unwrap()[40], 40.0f32.to_bits());
    let place =
        ["block 1 thread 8", "out of bounds: writes 4 bytes", "argument 0, byte 160 of 160", "planted.cu:16"];
    refused(run("too_far", 2, 32, 40, Some(40)), &place);
    refused(run("too_early", 1, 1, 4, None), &["out of bounds: reads", "byte -4 of 16", "planted.cu:19"]);
    refused(
        run("shared_too_far", 1, 64, 64, None),
        &["out of bounds: writes", "`row`, byte 256 of 256", "planted.cu:30"],
    );
    refused(run("misaligned", 1, 1, 4, None), &["misaligned: writes 4 bytes", "planted.cu:70"]);
}

#[test]
fn shared_memory_has_to_be_written_before_it_is_read() {
    refused(
        run("never_written", 1, 64, 64, None),
        &["block 0 thread 5", "uninitialised: reads shared `row`", "planted.cu:26"],
    );
}

#[test]
fn neighbouring_bytes_are_no_race() {
    run("bytes_beside_each_other", 1, 32, 8, None).unwrap();
}

#[test]
fn shuffles_need_one_place_and_every_lane_of_the_mask() {
    refused(
        run("divergent_shuffle", 1, 64, 64, None),
        &["divergent __shfl_sync", "planted.cu:36", "planted.cu:38"],
    );
    refused(run("mask_without_me", 1, 32, 32, None), &["is not in its own mask 0000ffff", "planted.cu:42"]);
    refused(
        run("lane_gone", 1, 32, 32, None),
        &["thread 3 of the mask ffffffff has exited", "planted.cu:46"],
    );
}

#[test]
fn barriers_at_two_places_are_divergent() {
    refused(run("half_a_barrier", 1, 64, 64, None), &["planted.cu:49", "planted.cu:51"]);
}

#[test]
fn what_waits_for_ever_is_reported_with_thread_and_line() {
    let report = run("waits_for_ever", 1, 64, 64, None);
    refused(
        report,
        &["deadlock: block 0 thread 0 waits in __syncthreads at planted.cu:54", "thread 1 waits"],
    );
    let report = run("waits_at_a_shuffle", 1, 32, 32, None);
    refused(report, &["deadlock: block 0 thread 0 waits in __shfl_sync with mask ffffffff at planted.cu:73"]);
}

#[test]
fn arguments_must_be_the_kernels() {
    refused(run("same_word", 1, 32, 32, Some(1)), &["arguments"]);
    refused(run("too_far", 1, 32, 32, None), &["arguments"]);
    refused(run("no_such_kernel", 1, 32, 32, None), &["no kernel"]);
}

#[test]
fn other_seeds_run_in_other_orders_and_the_same_seed_repeats() {
    let first = |seed| {
        let device = Emulator::new(seed);
        let x = Buffer::<u32, _>::zeros(&device, 64).unwrap();
        let launch = Launch {
            file: &PLANTED,
            kernel: "same_word",
            grid: (1, 1),
            block: 64,
            arguments: vec![x.argument(&device)],
        };
        device.launch(&launch).unwrap_err().to_string()
    };
    assert_eq!(first(1), first(1));
    assert!((2..6).any(|seed| first(seed).split(" (seed").next() != first(1).split(" (seed").next()));
}

#[test]
fn library_calls_stay_inside_their_operands() {
    use duogpt::cuda::blas::{Rows, gemm};
    let device = Emulator::new(1);
    let a = Buffer::<f32, _>::zeros(&device, 12).unwrap();
    let c = Buffer::<f32, _>::zeros(&device, 9).unwrap();
    let rows = |buffer, stride| Rows::new(&device, buffer, 0, stride);
    gemm(&device, (3, 3, 4), 1.0, rows(&a, 4), rows(&a, 4).t(), 0.0, rows(&c, 3)).unwrap();
    gemm(&device, (3, 3, 4), 1.0, rows(&a, 4), rows(&a, 4).t(), 0.0, rows(&c, 4)).unwrap_err();
    gemm(&device, (4, 3, 4), 1.0, rows(&a, 4), rows(&a, 4).t(), 0.0, rows(&c, 3)).unwrap_err();
}

#[test]
fn asynchronous_copies_land_at_their_wait() {
    let x: Vec<u32> = (0..160).collect();
    let found = run_on(&x, "copies", 1, 32, Some(0)).unwrap();
    let expected: Vec<u32> = (0..32).map(|t| (t + 1) % 32 * 4).collect();
    assert_eq!(found[128..], expected);
    let copied = |fault| run_on(&x, "copies", 1, 32, Some(fault));
    refused(copied(1), &["reads shared `rows`", "copies without having waited", "planted.cu:"]);
    refused(copied(2), &["`rows`", "planted.cu:"]);
    refused(copied(3), &["race: copies to shared `rows`", "read with no barrier between", "planted.cu:"]);
}

#[test]
fn matrices_are_loaded_transposed() {
    // Number c of row r is 8 r + c, so pair i of thread t holds 8 t + 2 i and the next.
    let mut x: Vec<u32> = (0..128).map(|i| (2 * i) | ((2 * i + 1) << 16)).collect();
    x.resize(256, 0);
    let found = run_on(&x, "matrices", 1, 32, None).unwrap();
    for lane in 0..32 {
        for matrix in 0..4 {
            let number = |row: u32, column: u32| 8 * (8 * matrix + row) + column;
            let (row, column) = (lane % 4 * 2, lane / 4);
            let expected = number(row, column) | number(row + 1, column) << 16;
            assert_eq!(found[128 + (4 * lane + matrix) as usize], expected, "lane {lane}, matrix {matrix}");
        }
    }
}

/// A (16 x 16), B (16 x 8) and C (16 x 8) through one step of a tensor core.
fn product(a: &Array2<f32>, b: &Array2<f32>, c: &Array2<f32>) -> Array2<f32> {
    let half: Vec<u16> = a.iter().chain(b).map(|&x| bf16::from_f32(x).to_bits()).collect();
    let mut x: Vec<u32> =
        half.chunks(2).map(|pair| u32::from(pair[0]) | (u32::from(pair[1]) << 16)).collect();
    x.extend(c.iter().map(|x| x.to_bits()));
    let found = run_on(&x, "product", 1, 32, None).unwrap();
    Array2::from_shape_vec((16, 8), found[192..].iter().map(|&x| f32::from_bits(x)).collect()).unwrap()
}

#[test]
fn tensor_cores_multiply() {
    let integer = |i: usize, j: usize| ((i * 7 + j * 5) % 11) as f32 - 5.0;
    let a = Array2::from_shape_fn((16, 16), |(i, j)| integer(i, j));
    let b = Array2::from_shape_fn((16, 8), |(i, j)| integer(3 * i, j + 1));
    let c = Array2::from_shape_fn((16, 8), |(i, j)| integer(i, 2 * j));
    assert_eq!(product(&a, &b, &c), a.dot(&b) + &c);
}

#[test]
fn tensor_cores_cut_where_they_add() {
    // Of 1 + 16 2^-26 nothing is left of any of the small terms, and of 1 + 2^-24 + 2^-24 each half a unit is kept.
    let sum = |first: f32, others: f32| {
        let a = Array2::from_shape_fn((16, 16), |(_, j)| if j < 2 { first } else { others });
        product(&a, &Array2::from_elem((16, 8), 2f32.powi(-12)), &Array2::ones((16, 8)))[(5, 5)]
    };
    assert_eq!(sum(2f32.powi(-14), 2f32.powi(-14)), 1.0);
    assert_eq!(sum(2f32.powi(-12), 0.0), 1.0 + 2f32.powi(-23));
    // To nearest, this would be 1 + 2^-22.
    assert_eq!(sum(1.75 * 2f32.powi(-12), 0.0), 1.0 + 2f32.powi(-23));
    let mut infinite = Array2::zeros((16, 16));
    infinite[(0, 0)] = f32::INFINITY;
    let found = product(&infinite, &Array2::ones((16, 8)), &Array2::ones((16, 8)));
    assert_eq!((found[(0, 0)], found[(1, 0)]), (f32::INFINITY, 1.0));
}
