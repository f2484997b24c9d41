#include "planner/offers/identity.h"

#include <bit>
#include <cstdint>
#include <string_view>

namespace lemo::planner {
namespace {

// Raised when an offer's content or its meaning changes: older ids are then of no offer.
constexpr int64_t kVersion = 2;

class Digest {
 public:
  void Add(int64_t value) {
    for (int i = 0; i < 8; ++i) Byte(static_cast<uint8_t>(static_cast<uint64_t>(value) >> (8 * i)));
  }
  void Add(double value) { Add(std::bit_cast<int64_t>(value)); }
  void Add(std::string_view text) {
    Add(static_cast<int64_t>(text.size()));
    for (const char c : text) Byte(static_cast<uint8_t>(c));
  }
  std::string Text() const {
    std::string text;
    for (const uint64_t half : halves_) {
      for (int shift = 60; shift >= 0; shift -= 4) {
        text.push_back("0123456789abcdef"[half >> shift & 15]);
      }
    }
    return text;
  }

 private:
  void Byte(uint8_t byte) {
    halves_[0] = (halves_[0] ^ byte) * 0x100000001b3u;
    // Another start and the byte turned round make the second half a hash of its own.
    halves_[1] = (halves_[1] ^ static_cast<uint8_t>(~byte)) * 0x100000001b3u;
  }
  uint64_t halves_[2] = {0xcbf29ce484222325u, 0x84222325cbf29ce4u};
};

void AddShape(const ModelShape& s, Digest* digest) {
  for (const int64_t value :
       {s.hidden, s.heads, s.kv_heads, s.head_dim, s.intermediate, s.vocabulary, s.layers,
        s.embedding_width, s.position_rows, int64_t{s.gated_mlp}, int64_t{s.layer_norm},
        int64_t{s.post_norm}, int64_t{s.final_norm}, int64_t{s.qk_norm}, int64_t{s.qkv_bias},
        int64_t{s.o_bias}, int64_t{s.mlp_bias}, int64_t{s.tied_embeddings}}) {
    digest->Add(value);
  }
}

void AddHeads(const LearningHeads& heads, Digest* digest) {
  for (const int64_t value : {heads.block, heads.r1, heads.r2, heads.p, int64_t{heads.flat_slice},
                              int64_t{heads.mlp}, heads.joint, int64_t{heads.rotated}}) {
    digest->Add(value);
  }
}

// Nothing where chance or place choose, in all steps: such offers keep the ids they had.
void AddChooser(const TokenChoice& choice, Digest* digest) {
  const RowChooser& by = choice.chooser;
  if (choice.mlp_own) digest->Add("mlp_own");
  if (choice.kv_all) digest->Add("kv_all");
  if (choice.any_share) digest->Add("any_share");
  if (!(by == RowChooser())) {
    for (const int64_t value : {static_cast<int64_t>(by.by), int64_t{by.own_stream}, by.held_bytes,
                                by.first_width, int64_t{by.flat_slice}}) {
      digest->Add(value);
    }
    if (by.by == RowChooser::By::kScores) {
      for (const int64_t value : {by.layers, int64_t{by.rotated}, int64_t{by.mlp}, by.block}) {
        digest->Add(value);
      }
    }
  }
  if (const Lessons& lessons = choice.lessons; lessons.parameters > 0) {
    digest->Add("lessons");
    AddHeads(lessons.heads, digest);
    for (const int64_t value :
         {lessons.parameters, lessons.joint, lessons.layers, lessons.start_bytes}) {
      digest->Add(value);
    }
    digest->Add(choice.lessons_a_step);
  }
  if (choice.table) {
    digest->Add("table");
    digest->Add(static_cast<int64_t>(choice.table->by));
    digest->Add(int64_t{choice.table->rotated});
  }
  if (choice.dense_share > 0) digest->Add(choice.dense_share);
}

}  // namespace

std::string IdOf(const OfferRequest& request, const Offer& offer) {
  Digest digest;
  digest.Add(kVersion);
  AddShape(request.shape, &digest);
  const MemoryTuning& tuning = request.tuning;
  const AdapterRanks& ranks = tuning.adapters;
  for (const int64_t value :
       {request.element_bytes, int64_t{tuning.full}, int64_t{tuning.dropout}, ranks.q, ranks.k,
        ranks.v, ranks.o, ranks.gate, ranks.up, ranks.down, int64_t{request.data.packing},
        request.window, request.batch_sequences, request.steps, request.evaluated.rows,
        request.evaluated.longest, int64_t{request.checkpoints}}) {
    digest.Add(value);
  }
  digest.Add(request.labelled_share);
  if (const Evaluated& evaluated = request.evaluated; evaluated.rows > 0) {
    digest.Add(evaluated.pairs);
    for (const int64_t value :
         {evaluated.times, int64_t{evaluated.sparse}, evaluated.shadows, evaluated.shadow_rows}) {
      digest.Add(value);
    }
  }
  for (const LengthCount& documents : request.data.documents) {
    digest.Add(documents.length);
    digest.Add(documents.count);
  }
  const DeviceRates& device = request.device;
  digest.Add(device.type);
  digest.Add(device.measured);
  for (const double rate :
       {device.compute.products, device.compute.attention, device.copy_bytes_per_second,
        device.layer_seconds, device.step_seconds}) {
    digest.Add(rate);
  }
  for (const LinkRate& link : device.links) {
    digest.Add(link.ranks);
    digest.Add(link.latency_seconds);
    digest.Add(link.bytes_per_second);
  }
  digest.Add(int64_t{device.own_memory});
  if (device.packs_keys) digest.Add("packs_keys");

  for (const int64_t value :
       {offer.window, offer.tensor_ranks, offer.data_ranks, static_cast<int64_t>(offer.sharding),
        offer.micro_batch_sequences, offer.loss_segment_rows}) {
    digest.Add(value);
  }
  if (request.sequence && offer.tensor_ranks > 1) digest.Add("sequence");
  for (const LayerStorage& storage : offer.storage) {
    digest.Add(2 * static_cast<int64_t>(storage.stored) + (storage.offload ? 1 : 0));
  }
  if (request.learning) {
    digest.Add("learning");
    AddHeads(request.learning->heads, &digest);
    digest.Add(int64_t{request.learning->allocates});
  }
  // The choice itself, not its place in the request.
  if (offer.token_choice >= 0) {
    const TokenChoice& choice = request.tokens[offer.token_choice];
    digest.Add(static_cast<int64_t>(choice.scope));
    for (const double keep : choice.keep) digest.Add(keep);
    digest.Add(int64_t{choice.mlp_off});
    digest.Add(choice.block);
    AddChooser(choice, &digest);
  }
  return digest.Text();
}

}  // namespace lemo::planner
