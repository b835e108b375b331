//! A weight as a decoder holds it: in its own type, in one of three formats.

use std::fmt;

use clap::ValueEnum;
use half::{bf16, f16};
use ndarray::{Array1, Array2, ArrayView2, Axis, ShapeBuilder};
use rayon::prelude::*;
use serde::Serialize;

use crate::linalg::Scalar;
use crate::reference::spmspv::{Dense, Format, Selected, TileBitmap, TileIndex, Value};
use crate::spmspv::Multiply;
use crate::tensors::FloatType;

/// The formats of [`spmspv`](crate::reference::spmspv).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum FormatKind {
    /// Every weight; only the columns of pruned activations are skipped.
    Dense,
    /// Without zeros, with a byte per value for its row.
    Index,
    /// Without zeros, with a bit per weight.
    Bitmap,
}

impl FormatKind {
    /// The format with the fewest bytes for weights of which a fraction `density` is not zero. A product takes about as
    /// long as reading these bytes.
    pub fn best(dtype: FloatType, density: f64) -> Self {
        let bytes = |kind: &FormatKind| match dtype.size() {
            2 => kind.bytes_per_weight::<bf16>(density),
            _ => kind.bytes_per_weight::<f32>(density),
        };
        let all = FormatKind::value_variants();
        *all.iter().min_by(|a, b| bytes(a).total_cmp(&bytes(b))).expect("there are three")
    }

    fn bytes_per_weight<V: Value>(self, density: f64) -> f64 {
        match self {
            FormatKind::Dense => Dense::<V>::bytes_per_weight(density),
            FormatKind::Index => TileIndex::<V>::bytes_per_weight(density),
            FormatKind::Bitmap => TileBitmap::<V>::bytes_per_weight(density),
        }
    }
}

impl fmt::Display for FormatKind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            FormatKind::Dense => Dense::<f32>::NAME,
            FormatKind::Index => TileIndex::<f32>::NAME,
            FormatKind::Bitmap => TileBitmap::<f32>::NAME,
        })
    }
}

/// A weight (out x in), column by column.
#[derive(Clone, Debug)]
pub enum Weight {
    /// IEEE single.
    F32(Columns<f32>),
    /// IEEE half.
    F16(Columns<f16>),
    /// bfloat16.
    Bf16(Columns<bf16>),
}

/// A weight of one type.
#[derive(Clone, Debug)]
pub enum Columns<V> {
    /// See [`FormatKind::Dense`].
    Dense(Dense<V>),
    /// See [`FormatKind::Index`].
    Index(TileIndex<V>),
    /// See [`FormatKind::Bitmap`].
    Bitmap(TileBitmap<V>),
}

/// Evaluates an expression with the weight's columns, whatever type and format they have.
macro_rules! with_columns {
    ($weight:expr, $columns:ident => $result:expr) => {
        match $weight {
            Weight::F32(Columns::Dense($columns)) => $result,
            Weight::F32(Columns::Index($columns)) => $result,
            Weight::F32(Columns::Bitmap($columns)) => $result,
            Weight::F16(Columns::Dense($columns)) => $result,
            Weight::F16(Columns::Index($columns)) => $result,
            Weight::F16(Columns::Bitmap($columns)) => $result,
            Weight::Bf16(Columns::Dense($columns)) => $result,
            Weight::Bf16(Columns::Index($columns)) => $result,
            Weight::Bf16(Columns::Bitmap($columns)) => $result,
        }
    };
}

impl<V: Value> Columns<V> {
    fn new(weight: Array2<f32>, format: FormatKind) -> Self {
        let columns = column_major(weight.view());
        drop(weight);
        match format {
            FormatKind::Dense => Columns::Dense(Dense::from_dense(columns.view())),
            FormatKind::Index => Columns::Index(TileIndex::from_dense(columns.view())),
            FormatKind::Bitmap => Columns::Bitmap(TileBitmap::from_dense(columns.view())),
        }
    }
}

impl Weight {
    /// Stores a weight (out x in) whose values are numbers of type `dtype`. There is no format for f64: `None`.
    pub fn new(weight: Array2<f32>, dtype: FloatType, format: FormatKind) -> Option<Self> {
        Some(match dtype {
            FloatType::F64 => return None,
            FloatType::F32 => Weight::F32(Columns::new(weight, format)),
            FloatType::F16 => Weight::F16(Columns::new(weight, format)),
            FloatType::Bf16 => Weight::Bf16(Columns::new(weight, format)),
        })
    }

    /// Rows (out) and columns (in).
    pub fn dim(&self) -> (usize, usize) {
        with_columns!(self, columns => columns.dim())
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        with_columns!(self, columns => columns.bytes())
    }

    /// Bytes that a product reads for these columns.
    pub fn bytes_read(&self, columns: &[u32]) -> usize {
        with_columns!(self, weight => weight.bytes_read(columns))
    }

    /// W x, from the definition.
    pub fn product<T: Scalar>(&self, x: &Selected<T>) -> Array1<T> {
        with_columns!(self, columns => columns.product(x)).mapv(T::of)
    }

    /// W x, fast.
    pub fn fast_product(&self, x: &Selected) -> Array1<f32> {
        let mut y = vec![0.0; self.dim().0];
        with_columns!(self, columns => columns.multiply(x, &mut y));
        Array1::from(y)
    }

    /// The weight (out x in, column-major) in the arithmetic of the run.
    pub fn decompress<T: Scalar>(&self) -> Array2<T> {
        with_columns!(self, columns => decompress(columns))
    }
}

/// The weight (out x in) in its own type, columns one after the other: a few at a time, as many as a cache line has values.
fn column_major<V: Value>(weight: ArrayView2<f32>) -> Array2<V> {
    const COLUMNS: usize = 32;
    let mut columns = Array2::from_elem(weight.dim().f(), V::ZERO);
    let from = weight.axis_chunks_iter(Axis(1), COLUMNS).into_par_iter();
    from.zip(columns.axis_chunks_iter_mut(Axis(1), COLUMNS)).for_each(|(from, mut to)| {
        for (from, mut to) in from.rows().into_iter().zip(to.rows_mut()) {
            to.zip_mut_with(&from, |to, from| *to = V::of(*from));
        }
    });
    columns
}

fn decompress<T: Scalar, V: Value, F: Format<V> + Sync>(columns: &F) -> Array2<T> {
    let mut weight = Array2::zeros(columns.dim().f());
    weight.axis_iter_mut(Axis(1)).into_par_iter().enumerate().for_each(|(j, column)| {
        let column = column.into_slice().expect("columns are contiguous");
        columns.column(j).for_each(|(i, w)| column[i] = T::of(w.to_f64()));
    });
    weight
}
