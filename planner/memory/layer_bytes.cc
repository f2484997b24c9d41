#include "planner/memory/layer_bytes.h"

#include <algorithm>

#include "planner/memory/meter.h"

namespace lemo::planner {
namespace {

constexpr int64_t kIndexBytes = 8, kRowIdBytes = 4;

// libtorch's flash attention on a CPU (aten/src/ATen/native/cpu/FlashAttentionKernel.cpp) works on
// tiles of so many queries by so many keys, in scratch that each thread has.
constexpr int64_t kKeyTile = 512;
constexpr int64_t kScoreTile = 256;  // rows and columns of pairs (kernels/block_scores)
int64_t QueryTile(int64_t rows) { return rows >= 768 ? 256 : rows >= 192 ? 64 : 32; }

class Layer {
 public:
  explicit Layer(const LayerScene& scene)
      : scene_(scene),
        e_(scene.element_bytes),
        a_(scene.layer.attention),
        m_(scene.layer.mlp),
        seen_(scene.layer.seen),
        own_a_(scene.layer.Own(a_)),
        own_m_(scene.layer.Own(m_)),
        shared_(scene.layer.row_ranks > 1),
        h_(scene.shape.hidden),
        q_(scene.shape.heads * scene.shape.head_dim),
        k_(scene.shape.kv_heads * scene.shape.head_dim),
        i_(scene.shape.intermediate),
        rope_(scene.shape.position_rows == 0),
        relu_(!scene.shape.gated_mlp) {}

  int64_t Forward(bool keep);
  int64_t Backward();
  int64_t Score(bool rotated, int64_t block);

 private:
  const AdapterRanks& ranks() const { return scene_.tuning.adapters; }
  bool full() const { return scene_.tuning.full; }
  bool Listed(int64_t rows) const { return rows < scene_.layer.stream || scene_.layer.listed; }
  // A list that names rows of the stream: indices, the rows' ids and their part of the rotation
  // tables.
  int64_t ListOf(int64_t rows) const {
    return rows * (kIndexBytes + kRowIdBytes) + (rope_ ? rows * scene_.shape.head_dim * 4 : 0);
  }
  // The list of a sub-block's rows where they are not the stream's.
  int64_t ListBytes(int64_t rows) const { return Listed(rows) ? ListOf(rows) : 0; }
  // Mean and reciprocal deviation of LayerNorm, the latter alone of RMSNorm.
  int64_t NormStatistics(int64_t rows) const {
    return (scene_.shape.layer_norm ? 2 : 1) * rows * kStatisticBytes;
  }
  int64_t TableBytes() const { return scene_.unturned ? a_ * scene_.shape.head_dim * 4 : 0; }
  // One pass over the stream gathers rows and normalises them.
  bool FusesNorm() const { return !scene_.shape.layer_norm && !scene_.shape.post_norm; }

  // A projection's value: the base's product and the adapter's, both alive when they are added.
  // Leaves the sum. Before it, the adapter's inner rows are there twice, as they are scaled.
  void Project(int64_t rows, int64_t out, int64_t rank) {
    const int64_t bytes = rows * out * e_;
    if (rank > 0) meter_.Touch(std::max(3 * bytes, bytes + 2 * rows * rank * e_));
    meter_.Take(bytes);
  }
  // What the graph of an adapter keeps beside the adapter's input.
  int64_t Inner(int64_t rows, int64_t rank) const { return rows * rank * e_; }
  // Gradients of what trains of a projection, which stay until those of its whole stage are made.
  int64_t Gradients(int64_t in, int64_t out, int64_t rank) const {
    return (full() ? in * out : rank * (in + out)) * e_;
  }
  // The largest of these in fp32, while it is added to what training accumulates in.
  int64_t Widened(int64_t in, int64_t out, int64_t rank) const {
    if (e_ >= kStatisticBytes) return 0;
    return (full() ? in * out : rank * std::max(in, out)) * kStatisticBytes;
  }
  // A gradient on its way through an adapter: the base's and the adapter's, added in place; that
  // behind the dropout is a tensor of its own.
  int64_t Ways(int64_t rank) const { return rank == 0 ? 1 : scene_.tuning.dropout ? 3 : 2; }
  // Dropped inputs are a copy for each adapter.
  int64_t Dropped(int64_t rows, int64_t in, int64_t rank) const {
    return scene_.tuning.dropout && rank > 0 ? rows * in * e_ : 0;
  }

  // A head's projection of the normed rows, on the way up; leaves its value.
  void Head(int64_t rows, int64_t width, int64_t heads, int64_t rank, bool rotates);
  // Keys and values of rows that are only seen. Leaves both where no arena has them.
  void See(bool in_arena);
  int64_t SeenBytes() const { return 2 * seen_ * k_ * e_; }
  // Keys and values of all rows in their order, made where some are only seen, and the list of
  // those.
  int64_t TogetherBytes() const {
    return seen_ > 0 ? 2 * (a_ + seen_) * k_ * e_ + seen_ * kIndexBytes : 0;
  }
  void Attend();
  // Where some rows are only seen: of every run of kept blocks the part of its own rows and that of
  // all rows before it.
  void AttendToAll();
  void AttendBackward();
  void AttendToAllBackward();
  // Kernel scratch of one document's rows, `products` tiles of scores a thread.
  int64_t Scratch(int64_t rows, int64_t products) const {
    const int64_t queries = std::min(rows, QueryTile(rows)), keys = std::min(rows, kKeyTile);
    // Scores are made in fp32, and once more in a narrower type where that is the compute type.
    return scene_.threads * products * queries * keys * (4 + (e_ < 4 ? e_ : 0));
  }

  // Where the forward kernel packs for matrix units: keys and values of so many rows, of every
  // head, and a tile that a thread turns over.
  int64_t PackedBytes(int64_t keys) const {
    constexpr int64_t kLeastRows = 64;  // that it packs
    if (!scene_.packs_keys || keys < kLeastRows) return 0;
    return 2 * keys * q_ * e_ +
           scene_.threads * std::min(keys, kKeyTile) * scene_.shape.head_dim * e_;
  }

  // The graph of the first projections, rebuilt: boundaries (where they were not kept) and what the
  // graph itself keeps.
  void ReplayQkv();
  void BackwardMlp();

  // Rows of a tile of the MLP, and this rank's of them.
  int64_t TileRows() const {
    return std::min(scene_.tile_rows + (shared_ ? scene_.layer.row_ranks - 1 : 0), m_);
  }
  int64_t OwnTileRows() const {
    if (!shared_) return TileRows();
    const int64_t tiles = (m_ + scene_.tile_rows - 1) / scene_.tile_rows;
    return (own_m_ + tiles - 1) / tiles;
  }
  // The normed rows of all ranks, from each one's own, whose graph is kept or not.
  void Gather(int64_t own, int64_t rows, bool graph) {
    meter_.Take(own * h_ * e_);
    graph ? meter_.Take(NormStatistics(own)) : meter_.Touch(NormStatistics(own));
    meter_.Take(rows * h_ * e_);
    if (!graph) meter_.Give(own * h_ * e_);
  }

  const LayerScene& scene_;
  const int64_t e_, a_, m_, seen_;
  const int64_t own_a_, own_m_;  // this rank's, where the ranks share the rows of the stream
  const bool shared_;
  const int64_t h_, q_, k_, i_;
  const bool rope_, relu_;
  Meter meter_;
};

void Layer::Head(int64_t rows, int64_t width, int64_t heads, int64_t rank, bool rotates) {
  const bool norms = rotates && scene_.shape.qk_norm;
  meter_.Touch(Dropped(rows, h_, rank) + (rank > 0 ? rows * width * e_ : 0));
  Project(rows, width, rank);
  if (norms) meter_.Touch(rows * width * e_ + rows * heads * kStatisticBytes);
  if (rotates && rope_) meter_.Touch(rows * width * e_);
}

void Layer::See(bool in_arena) {
  if (seen_ == 0) return;
  const int64_t own = scene_.layer.Own(seen_);
  const int64_t rows = ListOf(seen_) + own * h_ * e_;
  meter_.Take(rows);
  if (shared_) {
    Gather(own, seen_, /*graph=*/false);
  } else if (!scene_.shape.post_norm) {
    meter_.Take(seen_ * h_ * e_);
    meter_.Touch(NormStatistics(seen_));
  }
  Head(seen_, k_, scene_.shape.kv_heads, ranks().k, true);
  Head(seen_, k_, scene_.shape.kv_heads, ranks().v, false);
  meter_.Give(rows + (shared_ || !scene_.shape.post_norm ? seen_ * h_ * e_ : 0));
  if (in_arena) meter_.Give(SeenBytes());
}

void Layer::AttendToAll() {
  const int64_t n = scene_.layer.longest, heads = scene_.shape.heads;
  const int64_t out = a_ * q_ * e_ + heads * a_ * kStatisticBytes;
  const int64_t part = n * q_ * e_ + n * heads * kStatisticBytes;
  meter_.Take(TogetherBytes() + out);
  // At most all kept rows of a document are one run. Each part has its o and lse; they are put
  // together in fp32.
  meter_.Take(2 * part);
  meter_.Touch(Scratch(n, 1) + PackedBytes(std::max(n, scene_.layer.keys)) +
               scene_.threads * std::min(n, QueryTile(n)) * (2 + scene_.shape.head_dim) * 4);
  meter_.Touch(n * (3 * q_ + 4 * heads) * kStatisticBytes);
  meter_.Give(2 * part + TogetherBytes());
}

// Attention's o and lse are left alive.
void Layer::Attend() {
  if (seen_ > 0) return AttendToAll();
  const int64_t n = scene_.layer.longest, heads = scene_.shape.heads;
  meter_.Take(a_ * q_ * e_ + heads * a_ * kStatisticBytes);
  // The kernel's own o and lse of one document, copied to their places. Beside the scores a thread
  // has maxima, sums and a tile of the result.
  const int64_t tile = std::min(n, QueryTile(n));
  meter_.Take(n * q_ * e_ + n * heads * kStatisticBytes);
  meter_.Touch(Scratch(n, 1) + PackedBytes(n) +
               scene_.threads * tile * (2 + scene_.shape.head_dim) * 4);
  // lse of grouped heads lies in another order and is copied once more.
  const bool grouped = scene_.shape.kv_heads < scene_.shape.heads;
  meter_.Touch(grouped ? n * heads * kStatisticBytes : 0);
  meter_.Give(n * q_ * e_ + n * heads * kStatisticBytes);
}

int64_t Layer::Forward(bool keep) {
  meter_ = Meter();
  const LayerMemory& layer = scene_.layer;
  const ModelShape& shape = scene_.shape;
  // On a CPU the ring of offloaded boundaries is host memory too, but values go on as they are.
  const bool in_arena = keep && !layer.offload;
  const auto norm = [this, &shape](int64_t rows, int64_t own) {
    if (shape.post_norm) return;
    if (shared_) return Gather(own, rows, /*graph=*/false);
    meter_.Take(rows * h_ * e_);
    meter_.Touch(NormStatistics(rows));
  };

  const int64_t list = ListBytes(a_);
  meter_.Take(list);
  int64_t x = 0;
  if (Listed(a_)) {
    // A slot of the arena takes the rows where they are kept.
    x = keep && FusesNorm() ? 0 : own_a_ * h_ * e_;
    if (in_arena && !FusesNorm()) {
      meter_.Touch(x);
      x = 0;
    }
    meter_.Take(x);
  }
  meter_.Take(TableBytes());
  norm(a_, own_a_);
  Head(a_, q_, shape.heads, ranks().q, true);
  Head(a_, k_, shape.kv_heads, ranks().k, true);
  Head(a_, k_, shape.kv_heads, ranks().v, false);
  meter_.Give(TableBytes() + x + (shape.post_norm ? 0 : a_ * h_ * e_));
  const int64_t qkv = a_ * (q_ + 2 * k_) * e_;
  const bool keeps_qkv = in_arena && layer.stored >= Stored::kMlp;
  if (keeps_qkv) meter_.Give(qkv);
  See(in_arena);
  Attend();
  meter_.Give((keeps_qkv ? 0 : qkv) + (in_arena ? 0 : SeenBytes()));
  const int64_t o = a_ * q_ * e_ + shape.heads * a_ * kStatisticBytes;
  const bool keeps_o = in_arena && layer.stored >= Stored::kAttentionOut;
  if (keeps_o) meter_.Give(o);
  meter_.Touch(Dropped(a_, q_, ranks().o));
  Project(a_, h_, ranks().o);
  if (shared_) meter_.Touch(own_a_ * h_ * e_);
  meter_.Give(a_ * h_ * e_ + (keeps_o ? 0 : o));
  if (shape.post_norm) meter_.Touch(layer.stream * h_ * e_ + NormStatistics(layer.stream));

  if (layer.separate) {
    meter_.Take(ListBytes(m_));  // before the other list goes
    meter_.Give(list);
  }
  const int64_t rows = TileRows(), own = OwnTileRows();
  // A tile's part of a sum over ranks is under way while the next tile is computed.
  if (scene_.shares_tensors && m_ > rows) meter_.Take((rows + (shared_ ? own : 0)) * h_ * e_);
  const bool keeps_x2 =
      in_arena && !shape.post_norm && (layer.stored >= Stored::kMlp || layer.separate);
  if (Listed(m_) && !(keeps_x2 && FusesNorm())) {
    meter_.Touch(own * h_ * e_);
    if (!keeps_x2) meter_.Take(own * h_ * e_);
  }
  norm(rows, own);
  const int64_t inner = rows * i_ * e_;
  if (!relu_) {
    meter_.Touch(Dropped(rows, h_, ranks().gate));
    Project(rows, i_, ranks().gate);
  }
  meter_.Touch(Dropped(rows, h_, ranks().up));
  Project(rows, i_, ranks().up);
  meter_.Take(inner);  // the activation
  meter_.Touch(Dropped(rows, i_, ranks().down));
  Project(rows, h_, ranks().down);
  if (shape.post_norm) {
    // After the tiles are gone.
    Meter after(ListBytes(m_));
    after.Touch(layer.stream * h_ * e_ + NormStatistics(layer.stream));
    return std::max(meter_.peak(), after.peak());
  }
  return meter_.peak();
}

int64_t Layer::Score(bool rotated, int64_t block) {
  meter_ = Meter();
  const ModelShape& shape = scene_.shape;
  meter_.Take(TableBytes());
  const int64_t normed = shape.post_norm ? 0 : a_ * h_ * e_;
  meter_.Take(normed);
  if (!shape.post_norm) meter_.Touch(NormStatistics(a_));
  Head(a_, q_, shape.heads, ranks().q, true);
  Head(a_, k_, shape.kv_heads, ranks().k, true);
  meter_.Give(TableBytes() + normed);
  if (rotated) meter_.Take(a_ * (q_ + k_) * e_);
  // Of every document a number for each pair of its blocks; two tensors more while one is combined.
  const int64_t n = scene_.layer.longest, pairs = (n / block + 1) * (n / block + 1);
  meter_.Take((a_ + n - 1) / std::max<int64_t>(n, 1) * pairs * kStatisticBytes);
  // A tile's products and their sums over heads; of a narrow type its rows are widened.
  const int64_t tile = std::min(n, kScoreTile);
  meter_.Touch(std::max(
      2 * pairs * kStatisticBytes,
      scene_.threads * tile * kStatisticBytes * (2 * tile + (e_ < kStatisticBytes ? q_ + k_ : 0))));
  return meter_.peak();
}

void Layer::ReplayQkv() {
  const ModelShape& shape = scene_.shape;
  const bool known = scene_.layer.stored >= Stored::kMlp;
  const int64_t a = shape.post_norm ? 0 : a_ * h_ * e_;
  if (shared_) {
    Gather(own_a_, a_, /*graph=*/true);
  } else {
    meter_.Take(a);
    if (scene_.into_x || full()) {
      meter_.Take(shape.post_norm ? 0 : NormStatistics(a_));
    } else {
      meter_.Touch(NormStatistics(a_));
    }
  }
  const auto head = [&](int64_t width, int64_t heads, int64_t rank, bool rotates) {
    const int64_t bytes = a_ * width * e_;
    const bool normed = rotates && shape.qk_norm;
    meter_.Take(Inner(a_, rank) + Dropped(a_, h_, rank));
    if (known && !normed) return;  // the graph alone
    Project(a_, width, rank);
    if (normed) {
      // The norm's graph keeps what it read, and statistics; its result is rotated.
      meter_.Take(a_ * heads * kStatisticBytes);
      meter_.Take(bytes);
      if (known) {
        meter_.Give(bytes);
        return;
      }
    }
    if (rotates && rope_) meter_.Touch(bytes);
  };
  head(q_, shape.heads, ranks().q, true);
  head(k_, shape.kv_heads, ranks().k, true);
  head(k_, shape.kv_heads, ranks().v, false);
  // The normed rows stay where a matrix that trains read them.
  const bool reads =
      full() || ((ranks().q > 0 || ranks().k > 0 || ranks().v > 0) && !scene_.tuning.dropout);
  if (!reads && !shared_) meter_.Give(a);
}

void Layer::AttendToAllBackward() {
  const int64_t n = scene_.layer.longest, heads = scene_.shape.heads, all = a_ + seen_;
  meter_.Take(TogetherBytes() + a_ * q_ * e_ + 2 * all * k_ * kStatisticBytes);
  // The kernel's gradients have a head of keys for every query head. Of r rows that see themselves
  // they are 3 r rows long; of the keys before them 2 r, once more r that wait to be added, and
  // those of the keys: twice the document in all.
  const int64_t kernel = std::max(3 * n, 2 * scene_.layer.keys) * q_ * e_;
  const int64_t tile = std::min(n, QueryTile(n));
  meter_.Take(kernel);
  meter_.Touch(n * q_ * e_ + n * heads * kStatisticBytes + Scratch(n, 2) +
               scene_.threads * tile * kStatisticBytes);
  // Added up over the heads that share a key head, in fp32, of a narrower type by way of a copy.
  meter_.Touch(2 * scene_.layer.keys * k_ * kStatisticBytes +
               (e_ < kStatisticBytes ? scene_.layer.keys * q_ * kStatisticBytes : 0));
  meter_.Give(kernel);
  // In the rows' type, and of those that ask.
  if (e_ < kStatisticBytes) {
    meter_.Take(2 * all * k_ * e_);
    meter_.Give(2 * all * k_ * kStatisticBytes);
  }
  meter_.Take(2 * a_ * k_ * e_);
  meter_.Give(2 * all * k_ * std::min(e_, kStatisticBytes) + TogetherBytes());
}

void Layer::AttendBackward() {
  if (seen_ > 0) return AttendToAllBackward();
  const int64_t n = scene_.layer.longest, heads = scene_.shape.heads;
  // Gradients in their places.
  meter_.Take(a_ * (q_ + 2 * k_) * e_);
  // Of one document: those of the kernel, which has a head of keys for every query head, and the
  // incoming gradient in the kernel's order, which is that of the rows if there is one head of
  // keys.
  const int64_t key_heads = scene_.shape.kv_heads;
  meter_.Take(3 * n * q_ * e_);
  const int64_t lse = scene_.several_documents ? n * heads * kStatisticBytes : 0;
  const int64_t tile = std::min(n, QueryTile(n));
  meter_.Touch((key_heads > 1 ? n * q_ * e_ : 0) + lse + Scratch(n, 2) +
               scene_.threads * tile * kStatisticBytes);
  // Then of the heads that share a key head the sum, in fp32, of a narrower type by way of a copy.
  // dq is copied where no view of the kernel's order has a row's heads side by side: where heads
  // are grouped, and in several groups.
  const bool copies = key_heads > 1 && key_heads < heads;
  meter_.Touch((copies ? n * q_ * e_ : 0) + 2 * n * k_ * kStatisticBytes +
               (e_ < kStatisticBytes ? n * q_ * kStatisticBytes : 0));
  meter_.Give(3 * n * q_ * e_);
}

int64_t Layer::Backward() {
  meter_ = Meter();
  const LayerMemory& layer = scene_.layer;
  const ModelShape& shape = scene_.shape;
  const Stored stored = layer.stored;
  meter_.Take(ListBytes(a_));
  if (layer.separate) meter_.Take(ListBytes(m_));
  const int64_t stream_norm = 2 * layer.stream * h_ * e_ + NormStatistics(layer.stream);
  const int64_t output_graph = Inner(a_, ranks().o) + Dropped(a_, q_, ranks().o);
  int64_t x2 = 0, delta = 0, o = 0;
  if (shape.post_norm) {
    meter_.Touch(stream_norm);
    x2 = m_ * h_ * e_;
    meter_.Take(x2);
    meter_.Touch(NormStatistics(m_));
  } else if (stored < Stored::kMlp && !layer.separate) {
    if (stored == Stored::kInput) {
      ReplayQkv();
      Attend();
      o = a_ * q_ * e_ + shape.heads * a_ * kStatisticBytes;
    }
    Project(a_, h_, ranks().o);
    meter_.Take(output_graph);
    delta = a_ * h_ * e_ + output_graph;
    x2 = own_a_ * h_ * e_;
    meter_.Take(x2);
    if (shared_) meter_.Touch(x2);  // the sum
  }
  BackwardMlp();
  meter_.Give(x2);
  if (shape.post_norm) meter_.Touch(stream_norm);

  if (stored == Stored::kInput && o == 0) {
    ReplayQkv();
    Attend();
    o = a_ * q_ * e_ + shape.heads * a_ * kStatisticBytes;
  }
  if (delta == 0) {
    delta = output_graph;
    meter_.Take(delta);
  }
  // dout: the base's and the adapter's, added in place.
  const int64_t dout = a_ * q_ * e_;
  meter_.Take(dout);
  const int64_t taken = (Listed(a_) ? own_a_ : 0) + (shared_ ? a_ : 0);  // of the gradient's rows
  meter_.Touch(taken * h_ * e_ + (Ways(ranks().o) - 1) * dout + Gradients(q_, h_, ranks().o));
  meter_.Give(delta);
  if (stored != Stored::kInput) ReplayQkv();
  AttendBackward();
  meter_.Give(o);
  // Backward through the projections, v first, q last: the gradient in front of the rotation, that
  // in front of the head's norm, and of the normed rows the sum and those being added. What the
  // graph of k kept is gone when q's turn comes.
  const int64_t rows = scene_.into_x ? a_ * h_ * e_ : 0, dq = a_ * q_ * e_;
  const int64_t ways = std::max({Ways(ranks().q), Ways(ranks().k), Ways(ranks().v), int64_t{2}});
  const int64_t of_kv = Gradients(h_, k_, ranks().k) + Gradients(h_, k_, ranks().v);
  const int64_t of_q = Gradients(h_, q_, ranks().q);
  meter_.Touch(of_kv + ways * rows + (rope_ ? a_ * k_ * e_ : 0));
  if (shape.qk_norm) {
    meter_.Give(a_ * k_ * e_ + a_ * shape.kv_heads * kStatisticBytes);
    meter_.Touch(of_kv + rows + 2 * dq);
    meter_.Give(dq + a_ * shape.heads * kStatisticBytes);
  }
  meter_.Touch(of_kv + of_q + ways * rows + (rope_ ? dq : 0));
  // Gradients of a narrow type are added to fp32 ones by way of a copy.
  meter_.Touch(of_kv + of_q + rows + Widened(h_, q_, ranks().q));
  // The sum for this rank's rows, and what comes of it behind the norm.
  if (shared_) meter_.Touch(rows + 2 * own_a_ * h_ * e_);
  return meter_.peak();
}

void Layer::BackwardMlp() {
  const bool known = scene_.layer.stored == Stored::kAll;
  const bool down_trains = full() || ranks().down > 0;
  const int64_t rows = TileRows(), own = OwnTileRows();
  const int64_t inner = rows * i_ * e_, outer = rows * h_ * e_, own_outer = own * h_ * e_;
  const int64_t before = meter_.live();
  if (scene_.shares_tensors && m_ > rows) {
    meter_.Take(outer);
    // The sum, and the graph of the norm that it goes back through.
    if (shared_) meter_.Take(2 * own_outer + NormStatistics(own));
  }
  // Of a kept ReLU the signs are unpacked.
  const bool signs = relu_ && known && !down_trains;
  if (signs) meter_.Take(inner);
  int64_t a = scene_.shape.post_norm ? 0 : outer;
  if (shared_) {
    Gather(own, rows, /*graph=*/true);
  } else {
    meter_.Take(a + (scene_.shape.post_norm ? 0 : NormStatistics(rows)));
  }
  const int64_t dropped = Dropped(rows, i_, ranks().down);
  meter_.Take(Inner(rows, ranks().gate) + Inner(rows, ranks().up) + Inner(rows, ranks().down) +
              Dropped(rows, h_, ranks().gate) + Dropped(rows, h_, ranks().up));
  if (!known) {
    if (!relu_) Project(rows, i_, ranks().gate);
    Project(rows, i_, ranks().up);
  }
  meter_.Take(inner);  // the activation
  meter_.Take(dropped);
  const bool reads = full() || ((ranks().gate > 0 || ranks().up > 0) && !scene_.tuning.dropout);
  if (!reads && !shared_) {
    meter_.Give(a);
    a = 0;
  }
  int64_t activation = inner;
  if (relu_) {
    // The graph of a ReLU keeps its result and forgets what it was made of.
    if (!known) meter_.Give(inner);
  } else if (!down_trains || dropped > 0) {
    meter_.Give(inner);
    activation = 0;
  }
  // The gradient's rows.
  meter_.Take((shared_ ? outer : 0) + (Listed(m_) ? own_outer : 0));
  // Of down: the gradient of the activation. What its adapter read is not wanted after that.
  meter_.Take(inner + Gradients(i_, h_, ranks().down));
  meter_.Touch(ranks().down > 0 ? inner : 0);
  meter_.Give(dropped);
  meter_.Touch((Ways(ranks().down) - 1) * inner);
  if (!relu_) {
    meter_.Give(activation);
    meter_.Take(2 * inner);  // of gate and up
    meter_.Give(inner);
    if (!known) meter_.Give(2 * inner);
  } else {
    meter_.Take(inner);
    meter_.Give(inner + activation);
  }
  // Of up, then of gate: gradients of the normed rows; each inner gradient goes when it was used.
  meter_.Take(Gradients(h_, i_, ranks().up));
  meter_.Touch(std::max(Ways(ranks().up), int64_t{2}) * outer);
  if (!relu_) {
    meter_.Give(inner);
    meter_.Take(Gradients(h_, i_, ranks().gate));
    meter_.Touch(std::max(Ways(ranks().gate) + 1, int64_t{2}) * outer);
    meter_.Give(inner);
  }
  meter_.Touch(outer + std::max({Widened(h_, i_, ranks().up), Widened(h_, i_, ranks().gate),
                                 Widened(i_, h_, ranks().down)}));
  if (shared_) meter_.Touch(outer + 2 * own_outer);
  meter_.Give(meter_.live() - before);
}

}  // namespace

int64_t ForwardLayerBytes(const LayerScene& scene, bool keep) { return Layer(scene).Forward(keep); }

int64_t BackwardLayerBytes(const LayerScene& scene) { return Layer(scene).Backward(); }

int64_t ScoreLayerBytes(const LayerScene& scene, bool rotated, int64_t block) {
  return Layer(scene).Score(rotated, block);
}

}  // namespace lemo::planner
