//! The decoding product of one token, y = W (x * mask) in bf16: selection, every format at every sparsity, against the dense product
//! by our own kernel and by the vendor's library; and all products of one token of a whole model.

use std::cell::{LazyCell, RefCell};
use std::rc::Rc;

use duogpt::cuda::device::Buffer;
use duogpt::cuda::select::{RmsNorm, Selected};
use duogpt::cuda::spmspv::{Bitmap, Dense, Index, Scratch, Weight};
use duogpt::generate::Keep;
use duogpt::reference::spmspv::{self as reference, Format};
use half::bf16;
use ndarray::Array2;

use super::{Case, Checked, Limit, Machine, Shape, Suite, Work, activations, download, text, values};

const SPARSITIES: [f64; 5] = [0.0, 0.3, 0.5, 0.7, 0.9];

pub fn cases<D: Machine>(suite: &mut Suite<D>) {
    for (name, k) in suite.widths() {
        selection(suite, &name, k);
    }
    // Decoding here is on one device, which the largest model does not fit.
    let shapes: Vec<Shape> =
        suite.shapes.iter().filter(|shape| !shape.name.starts_with("llama-2-70b")).cloned().collect();
    for shape in &shapes {
        gemv(suite, shape);
        for sparsity in SPARSITIES {
            product::<Dense<bf16, D>, D>(suite, shape, 0.0, sparsity);
        }
        for weight_sparsity in SPARSITIES {
            for sparsity in SPARSITIES {
                product::<Index<bf16, D>, D>(suite, shape, weight_sparsity, sparsity);
                product::<Bitmap<bf16, D>, D>(suite, shape, weight_sparsity, sparsity);
            }
        }
    }
    token::<Dense<bf16, D>, D>(suite, 0.0);
    token::<Index<bf16, D>, D>(suite, 0.5);
    token::<Bitmap<bf16, D>, D>(suite, 0.5);
}

/// Weights (n x k) of which a fraction is zero.
fn weight(shape: (usize, usize), sparsity: f64) -> Array2<bf16> {
    let (n, k) = shape;
    let stays = values(7, n, k).mapv(|draw| f64::from(draw) >= 2.0 * sparsity - 1.0);
    let mut weight = values(8, n, k).mapv(bf16::from_f32);
    weight.zip_mut_with(&stays, |w, &stays| *w = if stays { *w } else { bf16::ZERO });
    weight
}

fn x(seed: u64, k: usize) -> Vec<bf16> {
    activations(seed, 1, k).iter().map(|&x| bf16::from_f32(x)).collect()
}

fn wide(x: &[bf16]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

/// How many of k activations count, and of how many weights of a column.
fn active(k: usize, sparsity: f64) -> f64 {
    (k - (k as f64 * sparsity).floor() as usize) as f64
}

/// Bytes and operations of one product: the stored weights of active columns, the list, y.
fn work<F: Format<bf16>>((n, k): (usize, usize), weight_sparsity: f64, sparsity: f64) -> Work {
    let columns = active(k, sparsity);
    let bytes = F::bytes_per_weight(1.0 - weight_sparsity) * n as f64 * columns + 8.0 * columns;
    let operations = 2.0 * (1.0 - weight_sparsity) * n as f64 * columns;
    Work { bytes: bytes as u64 + 4 * n as u64, operations: operations as u64, limit: Limit::Copy }
}

/// RMSNorm, exact top half, list.
fn selection<D: Machine>(suite: &mut Suite<D>, name: &str, k: usize) {
    struct Input<D: Machine> {
        x: Buffer<bf16, D>,
        g: Buffer<bf16, D>,
        selected: Selected<bf16, D>,
    }
    let keep = Keep::Largest(0.5);
    let input = |device: &D, seed| {
        let upload = |seed| Buffer::from_host(device, &x(seed, k)).map_err(text);
        let selected = Selected::new(device, k).map_err(text)?;
        Ok(Input { x: upload(seed)?, g: upload(seed + 1000)?, selected })
    };
    let run = |device: &D, Input { x, g, selected }: &mut Input<D>| {
        selected.select(device, x, Some(RmsNorm { weight: g, eps: 1e-5 }), keep).map_err(text)
    };
    let check = |device: &D| {
        let mut input = input(device, 0)?;
        run(device, &mut input)?;
        // The norm's rounding is checked in tests/gpu.rs; which of its results count is exact.
        let expected = keep.select(&wide(&download(device, &input.selected.normed)?));
        let count = download(device, &input.selected.count)?;
        Checked::same("count", &count, &[expected.len() as u32])?;
        let columns = download(device, &input.selected.columns)?;
        Checked::same("columns", &columns[..expected.len()], expected.indices())
    };
    let bytes = 6 * k as u64 + 8 * active(k, 0.5) as u64; // x, g, h; the list
    suite.case(Case {
        kernel: "select",
        shape: format!("{name}-bf16"),
        work: Work { bytes, operations: 0, limit: Limit::Copy },
        input: &input,
        run: &run,
        spoils_input: false,
        check: &check,
        baselines: &[],
    });
}

/// Copies of a dense weight that together are more than three times the cache, in turn.
struct Copies<'a, D: Machine> {
    host: &'a dyn Fn() -> Rc<reference::Dense<bf16>>,
    there: RefCell<Vec<Rc<Dense<bf16, D>>>>,
}

impl<D: Machine> Copies<'_, D> {
    fn of(&self, device: &D, seed: u64) -> Result<Rc<Dense<bf16, D>>, String> {
        let host = (self.host)();
        let enough = 3 * device.cache_bytes() / host.bytes().max(1) + 2;
        let (mut there, at) = (self.there.borrow_mut(), seed as usize % enough);
        while there.len() <= at {
            there.push(Rc::new(Dense::new(device, &host).map_err(text)?));
        }
        Ok(there[at].clone())
    }
}

/// What the products of one matrix take.
struct Operands<D: Machine> {
    all: Buffer<f32, D>,
    all_bf16: Buffer<bf16, D>,
    selected: Selected<bf16, D>,
    scratch: Scratch<D>,
    y: Buffer<f32, D>,
}

impl<D: Machine> Operands<D> {
    fn new(device: &D, (n, k): (usize, usize), seed: u64, keep: Keep) -> Result<Self, String> {
        let x = x(seed, k);
        let all_bf16 = Buffer::from_host(device, &x).map_err(text)?;
        let selected = Selected::new(device, k).map_err(text)?;
        selected.select(device, &all_bf16, None, keep).map_err(text)?;
        Ok(Operands {
            all: Buffer::from_host(device, &wide(&x)).map_err(text)?,
            all_bf16,
            selected,
            scratch: Scratch::new(device).map_err(text)?,
            y: Buffer::from_host(device, &vec![f32::NAN; n]).map_err(text)?,
        })
    }

    fn gemv(&self, device: &D, weight: &Dense<bf16, D>) -> Result<(), String> {
        weight.gemv(device, &self.all, &self.scratch, &self.y).map_err(text)
    }

    fn library(&self, device: &D, weight: &Dense<bf16, D>) -> Result<(), String> {
        let (w, x, y) = (weight.address(device), self.all_bf16.address(device, 0), self.y.address(device, 0));
        device.library_product(weight.dim(), w, x, y)
    }

    fn product<W: Weight<bf16, D>>(&self, device: &D, weight: &W) -> Result<(), String> {
        weight.product(device, &self.selected, &self.scratch, &self.y).map_err(text)
    }
}

/// y on the device against the definition, and against f32 on the CPU, column by column.
fn checked<D: Machine, F: Format<bf16>>(
    device: &D,
    y: &Buffer<f32, D>,
    weight: &F,
    x: &reference::Selected,
) -> Result<Checked, String> {
    let mut single = vec![0.0f32; y.len()];
    for (j, x) in x.iter() {
        weight.column(j).for_each(|(i, w)| single[i] += w.to_f32() * x);
    }
    Ok(Checked::by_rule(&download(device, y)?, &single, &weight.product(x).to_vec()))
}

/// The dense product: what sparsity has to beat.
fn gemv<D: Machine>(suite: &mut Suite<D>, shape: &Shape) {
    let dim = (shape.n, shape.k);
    let host = LazyCell::new(|| reference::Dense::from_dense(weight(dim, 0.0).view()));
    let input = |device: &D, seed| {
        let weight = Dense::<bf16, D>::new(device, &host).map_err(text)?;
        Ok((weight, Operands::new(device, dim, seed, Keep::ALL)?))
    };
    type Input<D> = (Dense<bf16, D>, Operands<D>);
    let run = |device: &D, (weight, operands): &mut Input<D>| operands.gemv(device, weight);
    let library = |device: &D, (weight, operands): &mut Input<D>| operands.library(device, weight);
    let check = |device: &D| {
        let mut input = input(device, 0)?;
        run(device, &mut input)?;
        checked(device, &input.1.y, &*host, &reference::Selected::all(&wide(&x(0, dim.1))))
    };
    suite.case(Case {
        kernel: "gemv",
        shape: shape.id(),
        work: work::<reference::Dense<bf16>>(dim, 0.0, 0.0),
        input: &input,
        run: &run,
        spoils_input: false,
        check: &check,
        baselines: &[("cuBLAS", &library)],
    });
}

/// A product in one format.
fn product<W: Weight<bf16, D>, D: Machine>(
    suite: &mut Suite<D>,
    shape: &Shape,
    weight_sparsity: f64,
    sparsity: f64,
) {
    let (dim, keep) = ((shape.n, shape.k), Keep::Largest(sparsity));
    let host = LazyCell::new(|| W::Host::from_dense(weight(dim, weight_sparsity).view()));
    let dense = LazyCell::new(|| Rc::new(reference::Dense::from_dense(weight(dim, weight_sparsity).view())));
    let copies = Copies { host: &|| Rc::clone(&dense), there: RefCell::default() };
    let input = |device: &D, seed| {
        let weight = W::new(device, &host).map_err(text)?;
        Ok((weight, copies.of(device, seed)?, Operands::new(device, dim, seed, keep)?))
    };
    type Input<W, D> = (W, Rc<Dense<bf16, D>>, Operands<D>);
    let run = |device: &D, (weight, _, operands): &mut Input<W, D>| operands.product(device, weight);
    let gemv = |device: &D, (_, dense, operands): &mut Input<W, D>| operands.gemv(device, dense);
    let library = |device: &D, (_, dense, operands): &mut Input<W, D>| operands.library(device, dense);
    let check = |device: &D| {
        let mut input = input(device, 0)?;
        run(device, &mut input)?;
        checked(device, &input.2.y, &*host, &keep.select(&wide(&x(0, dim.1))))
    };
    suite.case(Case {
        kernel: W::KERNEL,
        shape: format!("{}-w{:.0}-x{:.0}", shape.id(), 100.0 * weight_sparsity, 100.0 * sparsity),
        work: work::<W::Host>(dim, weight_sparsity, sparsity),
        input: &input,
        run: &run,
        spoils_input: false,
        check: &check,
        baselines: &[("gemv", &gemv), ("cuBLAS", &library)],
    });
}

/// The products of one token: in each layer q, k and v as one; o; gate and up as one; down; each behind its selection of half,
/// that of the first and third with its norm. Two layers in turn are more than three times any cache.
fn token<W: Weight<bf16, D>, D: Machine>(suite: &mut Suite<D>, weight_sparsity: f64) {
    let [attention, mlp, ..] = &suite.shapes[..] else { return };
    let (hidden, inner, layers) = (attention.k, mlp.n, suite.layers);
    let shapes = [(3 * hidden, hidden), (hidden, hidden), (2 * inner, hidden), (hidden, inner)];
    let shape = format!("{layers}-layers-{hidden}-{inner}-w{:.0}-x50", 100.0 * weight_sparsity);
    let keep = Keep::Largest(0.5);

    type Each<'a, L> = &'a dyn Fn(&L) -> Result<(), String>;
    struct Linear<W, D: Machine> {
        weight: W,
        dense: Dense<bf16, D>,
        operands: Operands<D>,
        g: Option<Buffer<bf16, D>>,
    }
    let hosts = LazyCell::new(|| {
        shapes.map(|dim| {
            let weight = weight(dim, weight_sparsity);
            (W::Host::from_dense(weight.view()), reference::Dense::from_dense(weight.view()))
        })
    });
    let input = |device: &D, seed| -> Result<Vec<Linear<W, D>>, String> {
        let linear = |(i, (host, dense)): (usize, &(W::Host, reference::Dense<bf16>))| {
            let k = host.dim().1;
            let g = Buffer::from_host(device, &x(seed + 1, k)).map_err(text)?;
            Ok(Linear {
                weight: W::new(device, host).map_err(text)?,
                dense: Dense::new(device, dense).map_err(text)?,
                operands: Operands::new(device, host.dim(), seed, keep)?,
                g: i.is_multiple_of(2).then_some(g),
            })
        };
        (0..2).flat_map(|_| hosts.iter().enumerate().map(linear).collect::<Vec<_>>()).collect()
    };
    let each = |linears: &[Linear<W, D>], run: Each<Linear<W, D>>| {
        (0..layers / 2).try_for_each(|_| linears.iter().try_for_each(run))
    };
    let run = |device: &D, linears: &mut Vec<Linear<W, D>>| {
        each(linears, &|linear| {
            let norm = linear.g.as_ref().map(|weight| RmsNorm { weight, eps: 1e-5 });
            let Operands { selected, all_bf16, .. } = &linear.operands;
            selected.select(device, all_bf16, norm, keep).map_err(text)?;
            linear.operands.product(device, &linear.weight)
        })
    };
    let gemv = |device: &D, linears: &mut Vec<Linear<W, D>>| {
        each(linears, &|linear| linear.operands.gemv(device, &linear.dense))
    };
    let library = |device: &D, linears: &mut Vec<Linear<W, D>>| {
        each(linears, &|linear| linear.operands.library(device, &linear.dense))
    };
    let check = |device: &D| {
        let mut linears = input(device, 0)?;
        run(device, &mut linears)?;
        let mut worst = Checked::EXACT;
        for (linear, (host, _)) in linears.iter().zip(&*hosts) {
            let Operands { selected, y, .. } = &linear.operands;
            let x = match linear.g {
                Some(_) => keep.select(&wide(&download(device, &selected.normed)?)),
                None => keep.select(&wide(&x(0, host.dim().1))),
            };
            worst = worst.worse(checked(device, y, host, &x)?);
        }
        Ok(worst)
    };
    let products = shapes.map(|dim| work::<W::Host>(dim, weight_sparsity, 0.5));
    let sum = |of: fn(&Work) -> u64| layers as u64 * products.iter().map(of).sum::<u64>();
    suite.case(Case {
        kernel: "token",
        shape: format!("{shape}-{}", W::KERNEL),
        work: Work {
            bytes: sum(|work| work.bytes),
            operations: sum(|work| work.operations),
            limit: Limit::Copy,
        },
        input: &input,
        run: &run,
        spoils_input: false,
        check: &check,
        baselines: &[("gemv", &gemv), ("cuBLAS", &library)],
    });
}
