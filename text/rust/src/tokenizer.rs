//! A loaded tokenizer.json.

use std::collections::HashSet;

/// One token and the bytes of the text that it came from. Same layout as `LemoToken` in `abi.h`.
#[repr(C)]
pub struct Token {
    pub id: i32,
    pub begin: u32,
    pub end: u32,
}

pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: HashSet<u32>,
    vocabulary_size: i32,
}

impl Tokenizer {
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(|e| e.to_string())?;
        if misplaced_token(json, &inner)?.is_some() {
            inner = tokenizers::Tokenizer::from_bytes(with_tokens_in_model(json)?)
                .map_err(|e| e.to_string())?;
            if let Some(fault) = misplaced_token(json, &inner)? {
                return Err(fault);
            }
        }
        // Files saved after a call with truncation or padding still carry those settings; lengths are
        // the caller's business, and a silently cut text would be lost training data.
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        inner.with_padding(None);

        let largest = inner.get_vocab(true).into_values().max();
        let vocabulary_size = match largest {
            None => 0,
            Some(id) if id < i32::MAX as u32 => id as i32 + 1,
            Some(id) => return Err(format!("token id {id} is too large")),
        };
        let special = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, _)| id)
            .collect();
        Ok(Self { inner, special, vocabulary_size })
    }

    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<Token>, String> {
        if text.len() > u32::MAX as usize {
            return Err(format!("a text of {} bytes is too long to tokenise at once", text.len()));
        }
        let encoding = self.inner.encode(text, add_special_tokens).map_err(|e| e.to_string())?;
        Ok(encoding
            .get_ids()
            .iter()
            .zip(encoding.get_offsets())
            .map(|(&id, &(begin, end))| Token {
                id: id as i32,
                begin: begin as u32,
                end: end as u32,
            })
            .collect())
    }

    pub fn decode(&self, ids: &[i32], skip_special_tokens: bool) -> Result<String, String> {
        let mut checked = Vec::with_capacity(ids.len());
        for &id in ids {
            if id < 0 || id >= self.vocabulary_size {
                return Err(format!(
                    "token id {id} is outside of the vocabulary of {}",
                    self.vocabulary_size
                ));
            }
            checked.push(id as u32);
        }
        self.inner.decode(&checked, skip_special_tokens).map_err(|e| e.to_string())
    }

    pub fn vocabulary_size(&self) -> i32 {
        self.vocabulary_size
    }

    pub fn token_to_id(&self, token: &str) -> Option<i32> {
        self.inner.token_to_id(token).map(|id| id as i32)
    }

    pub fn id_to_token(&self, id: i32) -> Option<String> {
        u32::try_from(id).ok().and_then(|id| self.inner.id_to_token(id))
    }

    pub fn is_special(&self, id: i32) -> bool {
        u32::try_from(id).is_ok_and(|id| self.special.contains(&id))
    }
}

/// The parts of a tokenizer.json that are looked at here.
#[derive(serde::Deserialize)]
struct Listing {
    #[serde(default)]
    added_tokens: Vec<ListedToken>,
}

#[derive(serde::Deserialize)]
struct ListedToken {
    id: u32,
    content: String,
}

/// What is wrong with the first added token that did not get the id which its file gives it.
fn misplaced_token(json: &[u8], loaded: &tokenizers::Tokenizer) -> Result<Option<String>, String> {
    let listing: Listing = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    Ok(listing.added_tokens.into_iter().find_map(|token| {
        let id = loaded.token_to_id(&token.content);
        (id != Some(token.id)).then(|| {
            format!("added token {:?} has the id {} but loads as {id:?}", token.content, token.id)
        })
    }))
}

/// The file with its added tokens entered in the model's vocabulary. The crate numbers added tokens from
/// the size of the vocabulary on, whatever their ids in the file, unless the vocabulary knows them; so
/// files that leave a gap between the two would load with wrong ids.
fn with_tokens_in_model(json: &[u8]) -> Result<Vec<u8>, String> {
    let mut file: serde_json::Value = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    let listing: Listing = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    // Unigram's vocabulary is a list without ids; such a file is refused by the check that follows.
    if let Some(vocabulary) = file["model"]["vocab"].as_object_mut() {
        for token in listing.added_tokens {
            vocabulary.entry(token.content).or_insert_with(|| token.id.into());
        }
    }
    serde_json::to_vec(&file).map_err(|e| e.to_string())
}
