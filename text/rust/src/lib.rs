//! Hugging Face's tokenizers and Jinja chat templates behind the C ABI of `abi.h`.
//!
//! `ffi` is the only module with unsafe code; `tokenizer` and `template` are what it exposes, and
//! `python` prints values the way Python does, which templates rely on.

mod ffi;
mod python;
mod template;
mod tokenizer;
