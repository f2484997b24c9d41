//! The C ABI declared in `abi.h`. Every entry catches panics, so that none crosses into C++.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use crate::template::{Conversation, Template};
use crate::tokenizer::{Token, Tokenizer};

const OK: i32 = 0;
const INVALID: i32 = 1;
const PANICKED: i32 = 2;

/// Borrowed bytes of the caller.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct View {
    data: *const u8,
    size: usize,
}

impl View {
    /// # Safety
    /// The bytes must stay valid for as long as the slice is used.
    unsafe fn bytes<'a>(self) -> &'a [u8] {
        if self.size == 0 {
            &[]
        } else {
            std::slice::from_raw_parts(self.data, self.size)
        }
    }

    /// # Safety
    /// As `bytes`.
    unsafe fn text<'a>(self, what: &str) -> Result<&'a str, String> {
        std::str::from_utf8(self.bytes())
            .map_err(|error| format!("{what} is not UTF-8 at byte {}", error.valid_up_to()))
    }
}

/// An array that this side allocated, given back through the matching `free`.
#[repr(C)]
pub struct Owned<T> {
    data: *mut T,
    size: usize,
}

impl<T> Owned<T> {
    fn new(items: Vec<T>) -> Self {
        let size = items.len();
        let data = Box::into_raw(items.into_boxed_slice()) as *mut T;
        Self { data, size }
    }

    /// # Safety
    /// Must come from `new`, once.
    unsafe fn free(self) {
        if !self.data.is_null() {
            drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.data, self.size)));
        }
    }
}

fn panic_text(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(other) => match other.downcast::<&'static str>() {
            Ok(text) => (*text).to_string(),
            Err(_) => "panic".to_string(),
        },
    }
}

/// Runs `body`; writes its value to `out`, or its reason to `error`.
unsafe fn guard<T>(
    out: *mut T,
    error: *mut Owned<u8>,
    body: impl FnOnce() -> Result<T, String>,
) -> i32 {
    // The reason travels in the status; a library does not print.
    static QUIET: Once = Once::new();
    QUIET.call_once(|| panic::set_hook(Box::new(|_| {})));
    let (code, reason) = match panic::catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => {
            out.write(value);
            return OK;
        }
        Ok(Err(reason)) => (INVALID, reason),
        Err(panic) => (PANICKED, panic_text(panic)),
    };
    error.write(Owned::new(reason.into_bytes()));
    code
}

#[no_mangle]
pub unsafe extern "C" fn lemo_bytes_free(bytes: Owned<u8>) {
    bytes.free();
}

#[no_mangle]
pub unsafe extern "C" fn lemo_tokens_free(tokens: Owned<Token>) {
    tokens.free();
}

#[no_mangle]
pub unsafe extern "C" fn lemo_tokenizer_load(
    json: View,
    out: *mut *mut Tokenizer,
    error: *mut Owned<u8>,
) -> i32 {
    guard(out, error, || Ok(Box::into_raw(Box::new(Tokenizer::from_json(json.bytes())?))))
}

#[no_mangle]
pub unsafe extern "C" fn lemo_tokenizer_free(tokenizer: *mut Tokenizer) {
    drop(Box::from_raw(tokenizer));
}

#[no_mangle]
pub unsafe extern "C" fn lemo_tokenizer_encode(
    tokenizer: *const Tokenizer,
    text: View,
    add_special_tokens: bool,
    out: *mut Owned<Token>,
    error: *mut Owned<u8>,
) -> i32 {
    guard(out, error, || {
        Ok(Owned::new((*tokenizer).encode(text.text("text")?, add_special_tokens)?))
    })
}

#[no_mangle]
pub unsafe extern "C" fn lemo_tokenizer_decode(
    tokenizer: *const Tokenizer,
    ids: *const i32,
    id_count: usize,
    skip_special_tokens: bool,
    out: *mut Owned<u8>,
    error: *mut Owned<u8>,
) -> i32 {
    guard(out, error, || {
        let ids = if id_count == 0 { &[] } else { std::slice::from_raw_parts(ids, id_count) };
        Ok(Owned::new((*tokenizer).decode(ids, skip_special_tokens)?.into_bytes()))
    })
}

#[no_mangle]
pub unsafe extern "C" fn lemo_tokenizer_vocabulary_size(tokenizer: *const Tokenizer) -> i32 {
    (*tokenizer).vocabulary_size()
}

#[no_mangle]
pub unsafe extern "C" fn lemo_tokenizer_token_to_id(
    tokenizer: *const Tokenizer,
    token: View,
) -> i32 {
    token.text("token").ok().and_then(|token| (*tokenizer).token_to_id(token)).unwrap_or(-1)
}

#[no_mangle]
pub unsafe extern "C" fn lemo_tokenizer_id_to_token(
    tokenizer: *const Tokenizer,
    id: i32,
    out: *mut Owned<u8>,
    error: *mut Owned<u8>,
) -> i32 {
    guard(out, error, || {
        let token = (*tokenizer).id_to_token(id);
        Ok(Owned::new(token.ok_or_else(|| format!("no token has id {id}"))?.into_bytes()))
    })
}

#[no_mangle]
pub unsafe extern "C" fn lemo_tokenizer_is_special(tokenizer: *const Tokenizer, id: i32) -> bool {
    (*tokenizer).is_special(id)
}

#[no_mangle]
pub unsafe extern "C" fn lemo_template_compile(
    source: View,
    out: *mut *mut Template,
    error: *mut Owned<u8>,
) -> i32 {
    guard(out, error, || Ok(Box::into_raw(Box::new(Template::compile(source.text("template")?)?))))
}

#[no_mangle]
pub unsafe extern "C" fn lemo_template_free(template: *mut Template) {
    drop(Box::from_raw(template));
}

/// What to render; the layout of `LemoConversation` in `abi.h`.
#[repr(C)]
pub struct ConversationView {
    messages: View,
    message_limit: usize,
    tools: View,
    bos_token: View,
    eos_token: View,
    now_s: i64,
    add_generation_prompt: bool,
}

#[no_mangle]
pub unsafe extern "C" fn lemo_template_render(
    template: *const Template,
    conversation: *const ConversationView,
    out: *mut Owned<u8>,
    error: *mut Owned<u8>,
) -> i32 {
    guard(out, error, || {
        let view = &*conversation;
        let text = (*template).render(&Conversation {
            messages: view.messages.text("messages")?,
            message_limit: view.message_limit,
            tools: view.tools.text("tools")?,
            add_generation_prompt: view.add_generation_prompt,
            bos_token: view.bos_token.text("bos_token")?,
            eos_token: view.eos_token.text("eos_token")?,
            now_s: view.now_s,
        })?;
        Ok(Owned::new(text.into_bytes()))
    })
}
