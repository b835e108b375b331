//! The types that weights are stored in.

use half::{bf16, f16};

use crate::tensors::FloatType;

/// A stored weight: `f32`, `f16` or `bf16`. Every value of these types is exact in f32.
pub trait Value: Copy + Send + Sync + std::fmt::Debug + 'static {
    /// The same type as a tensor's.
    const FLOAT: FloatType;
    /// +0, which is not stored.
    const ZERO: Self;

    /// The bit pattern, in the low bits.
    fn bits(self) -> u32;
    /// The value with these low bits.
    fn from_bits(bits: u32) -> Self;
    /// The same number.
    fn to_f32(self) -> f32;
    /// The nearest number of this type.
    fn of(x: f32) -> Self;

    /// The same number.
    fn to_f64(self) -> f64 {
        f64::from(self.to_f32())
    }
    /// Whether it is +0, bit by bit.
    fn is_zero(self) -> bool {
        self.bits() == 0
    }
}

impl Value for f32 {
    const FLOAT: FloatType = FloatType::F32;
    const ZERO: Self = 0.0;

    fn bits(self) -> u32 {
        self.to_bits()
    }
    fn from_bits(bits: u32) -> Self {
        f32::from_bits(bits)
    }
    fn to_f32(self) -> f32 {
        self
    }
    fn of(x: f32) -> Self {
        x
    }
}

macro_rules! half_value {
    ($type:ident, $float:expr, $to_f32:expr) => {
        impl Value for $type {
            const FLOAT: FloatType = $float;
            const ZERO: Self = $type::ZERO;

            fn bits(self) -> u32 {
                self.to_bits().into()
            }
            fn from_bits(bits: u32) -> Self {
                $type::from_bits(bits as u16)
            }
            fn to_f32(self) -> f32 {
                $to_f32(self)
            }
            fn of(x: f32) -> Self {
                $type::from_f32(x)
            }
        }
    };
}
half_value!(f16, FloatType::F16, f16::to_f32);
// The upper half of an f32. (The conversion of `half` changes signalling NaNs.)
half_value!(bf16, FloatType::Bf16, |x: bf16| f32::from_bits(u32::from(x.to_bits()) << 16));
