//! The floating-point types that weights are stored in.

use std::path::Path;

use half::{bf16, f16};
use ndarray::{Array2, ArrayView2};
use safetensors::Dtype;

use crate::linalg::Scalar;
use crate::tensor_error::TensorError;

/// The floating-point types that weights are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FloatType {
    /// IEEE double.
    F64,
    /// IEEE single.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
}

impl FloatType {
    /// The type of the reference's numbers.
    pub fn of_scalar<T: Scalar>() -> Self {
        if T::UNIT_ROUNDOFF == f64::UNIT_ROUNDOFF { FloatType::F64 } else { FloatType::F32 }
    }

    /// The type of a stored tensor, where it is one of the four.
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F64 => Some(FloatType::F64),
            Dtype::F32 => Some(FloatType::F32),
            Dtype::BF16 => Some(FloatType::Bf16),
            Dtype::F16 => Some(FloatType::F16),
            _ => None,
        }
    }

    /// The tag in a safetensors header.
    pub fn dtype(self) -> Dtype {
        match self {
            FloatType::F64 => Dtype::F64,
            FloatType::F32 => Dtype::F32,
            FloatType::Bf16 => Dtype::BF16,
            FloatType::F16 => Dtype::F16,
        }
    }

    /// The value of `torch_dtype` in a config.json.
    pub fn torch_name(self) -> &'static str {
        match self {
            FloatType::F64 => "float64",
            FloatType::F32 => "float32",
            FloatType::Bf16 => "bfloat16",
            FloatType::F16 => "float16",
        }
    }

    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            FloatType::F64 => 8,
            FloatType::F32 => 4,
            FloatType::Bf16 | FloatType::F16 => 2,
        }
    }

    /// Half the distance from 1 to the next number.
    pub fn unit_roundoff(self) -> f64 {
        match self {
            FloatType::F64 => f64::EPSILON / 2.0,
            FloatType::F32 => f64::from(f32::EPSILON) / 2.0,
            FloatType::Bf16 => f64::from(bf16::EPSILON) / 2.0,
            FloatType::F16 => f64::from(f16::EPSILON) / 2.0,
        }
    }

    /// The smallest number of full precision: below it the distance between numbers stays the same.
    pub fn smallest_normal(self) -> f64 {
        match self {
            FloatType::F64 => f64::MIN_POSITIVE,
            FloatType::F32 => f64::from(f32::MIN_POSITIVE),
            FloatType::Bf16 => f64::from(bf16::MIN_POSITIVE),
            FloatType::F16 => f64::from(f16::MIN_POSITIVE),
        }
    }

    /// `x` rounded to this type (nearest, ties to even).
    pub fn round<T: Scalar>(self, x: T) -> T {
        match self {
            FloatType::F64 => x,
            FloatType::F32 => T::of((x.widen() as f32).into()),
            FloatType::Bf16 => T::of(bf16::from_f32(to_odd(x.widen())).into()),
            FloatType::F16 => T::of(f16::from_f32(to_odd(x.widen())).into()),
        }
    }

    /// The bits of `x` rounded to this type. For numbers that are not negative, the order of the bits is that of the numbers.
    pub fn bits(self, x: f64) -> u64 {
        match self {
            FloatType::F64 => x.to_bits(),
            FloatType::F32 => (x as f32).to_bits().into(),
            FloatType::Bf16 => bf16::from_f32(to_odd(x)).to_bits().into(),
            FloatType::F16 => f16::from_f32(to_odd(x)).to_bits().into(),
        }
    }

    /// The bytes of a matrix, row-major, little-endian, rounded to this type.
    pub fn encode<T: Scalar>(self, values: ArrayView2<T>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(values.len() * self.size());
        for x in values {
            bytes.extend(&self.bits(x.widen()).to_le_bytes()[..self.size()]);
        }
        bytes
    }
}

/// An f64 as an f32 that rounds to the same number of a narrower type: where it is between two, the one with an odd last
/// bit. (The `half` crate's own conversion from f64 drops 32 bits before it rounds, and takes what is left for a tie.)
fn to_odd(x: f64) -> f32 {
    let nearest = x as f32;
    if f64::from(nearest) == x || !nearest.is_finite() || nearest.to_bits() & 1 == 1 {
        return nearest;
    }
    if f64::from(nearest) < x { nearest.next_up() } else { nearest.next_down() }
}

/// Rounds a weight to the type it will be stored in.
///
/// # Errors
/// [`TensorError::Overflow`] when a finite value becomes infinite.
pub fn round_for_storage<T: Scalar>(
    path: &Path,
    name: &str,
    weight: &mut Array2<T>,
    to: FloatType,
) -> Result<(), TensorError> {
    for (index, x) in weight.indexed_iter_mut() {
        let rounded = to.round(*x);
        if !rounded.is_finite() && x.is_finite() {
            return Err(TensorError::Overflow {
                path: path.to_path_buf(),
                name: name.into(),
                index: vec![index.0, index.1],
                value: x.widen(),
                dtype: to.dtype(),
            });
        }
        *x = rounded;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Just above, at, and just below the middle of two neighbours, which must go up, to the even one, and down.
    #[test]
    fn rounding_is_to_nearest_and_to_even_on_ties_only() {
        for (to, step) in [(FloatType::Bf16, 2f64.powi(-7)), (FloatType::F16, 2f64.powi(-10))] {
            for (even, odd) in [(1.0, 1.0 + step), (1.0 + 2.0 * step, 1.0 + step)] {
                let middle: f64 = (even + odd) / 2.0;
                for (x, expected) in [
                    (middle, even),
                    (middle.next_up(), even.max(odd)),
                    (middle.next_down(), even.min(odd)),
                    (f64::from((middle as f32).next_up()), even.max(odd)),
                    (f64::from((middle as f32).next_down()), even.min(odd)),
                ] {
                    for sign in [1.0, -1.0] {
                        assert_eq!(to.round(sign * x), sign * expected, "{to:?} {x:e}");
                        let bytes = to.encode(ndarray::array![[sign * x]].view());
                        assert_eq!(
                            bytes,
                            to.encode(ndarray::array![[sign * expected]].view()),
                            "{to:?} {x:e}"
                        );
                    }
                }
            }
            assert!(to.round(f64::NAN).is_nan());
            assert_eq!(to.round(f64::MAX), f64::INFINITY);
            assert_eq!(to.round(-0.0f64).to_bits(), (-0.0f64).to_bits());
        }
    }
}
