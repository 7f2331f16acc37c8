// Runs a launch: a block at a time (those of a cluster, or of all, at once where they wait for one another), a thread
// until it waits.
//
// What happens while threads go on is as late as it may be: a bulk copy comes when no thread can go on without it, the
// newest first; a warpgroup's product reads shared memory when it is waited for. Whether something happened before
// something else follows from clocks that threads hand on by barriers, those of a cluster too, so a race is found
// whoever ran first.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <deque>

#include "ptx.hpp"

namespace emulator {
namespace {

template <class T>
T as(uint64_t v) {
  T t;
  memcpy(&t, &v, sizeof(T));
  return t;
}
template <class T>
uint64_t bits(T t) {
  uint64_t v = 0;
  memcpy(&v, &t, sizeof(T));
  return v;
}

float half(uint16_t h) {
  int e = h >> 10 & 31, m = h & 1023;
  float v = e == 0 ? ldexpf(m, -24) : e == 31 ? (m ? NAN : INFINITY) : ldexpf(m + 1024, e - 25);
  return h >> 15 ? -v : v;
}
uint16_t to_bf16(float x) {
  uint32_t b = (uint32_t)bits(x);
  if (x != x) return 0x7fff;
  return (uint16_t)((b + 0x7fff + (b >> 16 & 1)) >> 16);
}
float from_bf16(uint16_t h) { return as<float>((uint64_t)h << 16); }
float truncated_to_tf32(uint32_t b) { return as<float>(b & 0xffffe000u); }  // what the hardware looks at
float rounded_to_tf32(float x) {
  if (x != x) return x;
  return as<float>((bits(x) + 0x1000) & 0xffffe000u);
}

template <class T>
bool compare(Compare c, T a, T b) {
  bool unordered = a != a || b != b;
  switch (c) {
    case EQ: return a == b;
    case NE: return !unordered && a != b;
    case LT: return a < b;
    case LE: return a <= b;
    case GT: return a > b;
    case GE: return a >= b;
    case EQU: return unordered || a == b;
    case NEU: return unordered || a != b;
    case LTU: return unordered || a < b;
    case LEU: return unordered || a <= b;
    case GTU: return unordered || a > b;
    case GEU: return unordered || a >= b;
    case NUM: return !unordered;
    default: return unordered;
  }
}

enum State : uint8_t { RUNNING, AT_BARRIER, AT_WARP, AT_WARPGROUP, AT_MBARRIER, AT_GRID, AT_CLUSTER, DONE };

// For each thread of the blocks of a cluster, and each warpgroup and barrier, how much of what it did is known. Those of
// a warpgroup are products that are waited for, of a barrier the phases that are over.
typedef std::vector<uint64_t> Ticks;
void join(Ticks& into, const Ticks& other) {
  for (size_t i = 0; i < into.size(); i++) into[i] = std::max(into[i], other[i]);
}

// What a thread knows; one is shared by threads that know the same.
struct Clock {
  Ticks ticks, least;  // least: of each block, what is known of all of its threads
};

struct Copy {
  uint64_t to, from;
  int bytes, from_bytes;
};

struct Thread {
  int pc = 0;
  State state = RUNNING;
  unsigned index = 0;
  unsigned arrived = 0, waited = 0;  // at barriers of the cluster
  std::vector<uint64_t> r;
  std::vector<uint8_t> local;
  std::deque<std::vector<Copy>> groups;  // of asynchronous copies; the last is open
  std::shared_ptr<Clock> clock;   // what it knows of others
  uint64_t tick = 1;              // of what it does now
  bool told_no = false;           // that a phase is not over; the next time it waits
  unsigned may_use = 0;           // registers
  uint64_t time = 0, fenced = 0;  // of instructions; of the last fence before products
  std::vector<uint64_t> set;      // when a register was, other than by a product
  std::vector<bool> under_way;    // registers of sums that are not waited for
};

// Who touched a byte of shared memory, and at which of its ticks.
struct Access {
  int rank = -1, thread = -1;
  uint64_t tick = 0;     // 0: nobody
  bool several = false;  // threads: this is one of them, with the highest tick of any
  bool warp = false;     // several of one warp
};
const int SEVERAL = 1 << 20;  // the rank of blocks of which none is meant

const unsigned WARPGROUP = 128, WARPGROUPS = 8, BARRIERS = 64;

struct Barrier {
  uint64_t phase = 0;
  int64_t arrivals = 0, left = 0, bytes = 0;  // bytes: announced, and not there
  bool shown = false;                         // to copies
  unsigned number = 0;
  Access made;
  Ticks arriving, over;  // what those knew that arrived in this phase, and before
};

struct Bulk {
  uint64_t to, from, barrier;
  int bytes;
};

struct Product {
  const Instruction* in;
  int pc;
  std::vector<uint64_t> a, b;  // descriptors, of every thread
  uint32_t tick;
};

struct Warpgroup {
  std::deque<std::vector<Product>> groups{{}};  // the last is open
  uint32_t tick = 0;
};

// Of a byte of shared memory: its last write, and what has read it since, in the byte's own block and in others.
struct Shadow {
  Access written, read, read_by_others;
  bool copied_to = false;
  int copier = -1;  // the barrier that a bulk copy of it counted for, and in which phase
  uint32_t copied = 0;
};
const uint64_t WINDOW = 1 << 24;  // shared memory of block r of a cluster is at r * WINDOW

struct Block;
struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  Ticks arriving;  // what those knew that have arrived at its barrier
};
const int PHASE = 32;  // ticks of a thread count from 2^PHASE times how often it has arrived

struct Block {
  const Launch& launch;
  const Kernel& kernel;
  Dim at;
  std::vector<Thread> threads;
  std::vector<uint8_t> shared;
  std::vector<Shadow> shadow;
  std::map<uint64_t, Barrier> barriers;  // by their addresses
  std::vector<Bulk> bulks;               // under way
  std::vector<Warpgroup> warpgroups;
  std::vector<std::array<uint32_t, WARPGROUPS>> product_reads;  // of a byte: the last product of each warpgroup
  unsigned registers_left = 0;
  int rank;
  Cluster* cluster;
  unsigned numbers;  // of the clock that a block takes
  Access touched;    // by threads of other blocks

  Block(const Launch& launch, Dim at, int rank = 0, Cluster* cluster = nullptr)
      : launch(launch), kernel(*launch.kernel), at(at), rank(rank), cluster(cluster) {
    unsigned n = launch.block.x * launch.block.y * launch.block.z;
    size_t size = kernel.shared_bytes;
    if (launch.dynamic_shared) size = (size + 15) / 16 * 16 + launch.dynamic_shared;
    shared.assign(size, 0xff);  // NaN
    shadow.resize(size);
    threads.resize(n);
    for (unsigned i = 0; i < n; i++) {
      auto& t = threads[i];
      t.index = i;
      t.r.assign(kernel.registers, 0xfffffffffffffff7ull);
      t.local.assign(kernel.local_bytes, 0xff);
      t.groups.emplace_back();
      unsigned x = i % launch.block.x, y = i / launch.block.x % launch.block.y,
               z = i / (launch.block.x * launch.block.y);
      const unsigned values[] = {x,     y,    z,    launch.block.x, launch.block.y, launch.block.z,
                                 at.x,  at.y, at.z, launch.grid.x,  launch.grid.y,  launch.grid.z,
                                 i % 32, (unsigned)rank, std::max(launch.cluster, 1u), at.x / std::max(launch.cluster, 1u),
                                 launch.dynamic_shared};
      for (auto [which, index] : kernel.special) t.r[index] = values[which];
    }
    numbers = n + (kernel.asynchronous ? WARPGROUPS + BARRIERS : 0);
    unsigned blocks = std::max(launch.cluster, 1u);
    auto nothing = std::make_shared<Clock>(Clock{Ticks(blocks * numbers, 0), Ticks(blocks, 0)});
    for (auto& t : threads) t.clock = nothing;
    if (kernel.asynchronous) {
      unsigned each = std::min(65536 / n / 8 * 8, 255u);
      registers_left = 65536 - each * n;
      warpgroups.resize(n / WARPGROUP);
      product_reads.resize(size);
      for (auto& t : threads) {
        t.may_use = each;
        t.set.assign(kernel.registers, 0);
        t.under_way.assign(kernel.registers, false);
      }
    }
  }

  // ------------------------------------------------------------------------------- what is known
  int number_of(const Thread& t) const { return (int)(rank * numbers + t.index); }
  int number_of(const Warpgroup& w) const { return (int)(rank * numbers + threads.size() + (&w - warpgroups.data())); }
  int number_of(const Barrier& b) const { return (int)(rank * numbers + threads.size() + WARPGROUPS + b.number); }

  bool knows(const Thread& t, int number, uint64_t tick) const { return t.clock->ticks[number] >= tick; }
  // Whether an access comes before what a thread does now. Of several threads all of their warp, or of their blocks,
  // have to be known.
  bool knows(const Thread& t, const Access& a) const {
    if (!a.tick) return true;
    if (!a.several) return (a.rank == rank && a.thread == (int)t.index) || knows(t, a.rank * numbers + a.thread, a.tick);
    auto& least = t.clock->least;
    if (a.warp) {
      int first = a.thread / 32 * 32, end = std::min(first + 32, (int)threads.size());
      for (int u = first; u < end; u++)
        if (!knows(t, a.rank * numbers + u, a.tick) && !(a.rank == rank && u == (int)t.index)) return false;
      return true;
    }
    return (a.rank == SEVERAL ? *std::min_element(least.begin(), least.end()) : least[a.rank]) >= a.tick;
  }

  void learn(Clock& clock, const Ticks& ticks) {
    join(clock.ticks, ticks);
    for (size_t r = 0; r < clock.least.size(); r++) {
      auto first = clock.ticks.begin() + r * numbers;
      clock.least[r] = *std::min_element(first, first + threads.size());
    }
  }
  // Threads that know the same before do so after.
  void learn(Thread* first, unsigned count, const Ticks& ticks) {
    std::shared_ptr<Clock> before, after;
    for (Thread* t = first; t < first + count; t++) {
      if (t->clock != before) {
        before = t->clock;
        after = std::make_shared<Clock>(*before);
        learn(*after, ticks);
      }
      t->clock = after;
    }
  }
  void release(Thread& t, Ticks& into) {
    join(into, t.clock->ticks);
    into[number_of(t)] = t.tick++;
  }
  // Their ticks are the same after it, so that several of them are known as soon as one is.
  void meet(unsigned first, unsigned count) {
    auto all = std::make_shared<Clock>(*threads[first].clock);
    uint64_t most = 0;
    const Clock* last = nullptr;
    for (unsigned i = first; i < first + count; i++) {
      if (threads[i].clock.get() != last) join(all->ticks, threads[i].clock->ticks);
      last = threads[i].clock.get();
      most = std::max(most, threads[i].tick);
    }
    for (unsigned i = first; i < first + count; i++) all->ticks[number_of(threads[i])] = most;
    learn(*all, all->ticks);
    for (unsigned i = first; i < first + count; i++) {
      threads[i].clock = all;
      threads[i].tick = most + 1;
    }
  }
  void arrive_at_cluster(Thread& t) {
    if (t.arrived++ != t.waited) fault(t, "a second arrival at a barrier of the cluster");
    t.tick = ((uint64_t)t.arrived << PHASE) - 1;
    release(t, cluster->arriving);
  }
  void leave_cluster() {
    for (auto& t : threads)
      if (t.pc != threads[0].pc) fault(t, "threads of a block wait at different barriers");
    learn(threads.data(), (unsigned)threads.size(), cluster->arriving);
    for (auto& t : threads) {
      t.waited++;
      t.state = RUNNING;
      t.pc++;
    }
  }

  // --------------------------------------------------------------------------- barriers and copies
  // The block whose shared memory an address of the cluster means; what is left of it is the address there.
  Block& owner_of(Thread& t, uint64_t& at) {
    uint64_t other = at / WINDOW;
    if (other >= (cluster ? cluster->blocks.size() : 1)) fault(t, "shared memory of a block that the cluster does not have");
    at %= WINDOW;
    if ((int)other == rank) return *this;
    auto& owner = *cluster->blocks[other];
    for (auto& u : owner.threads)
      if (u.state == DONE) fault(t, "shared memory of a block that has ended");
    return owner;
  }

  // Where an address is in the shared memory of this block.
  uint64_t own(Thread& t, uint64_t at) {
    if (at / WINDOW != (uint64_t)rank) fault(t, "an address in the shared memory of another block");
    return at % WINDOW;
  }

  Barrier& barrier_at(Thread& t, uint64_t at, Block& owner) {
    auto found = owner.barriers.find(at);
    if (found == owner.barriers.end()) fault(t, "no barrier at " + std::to_string(at));
    auto& b = found->second;
    if (!knows(t, b.made)) fault(t, "race: a barrier that thread " + std::to_string(b.made.thread) + " makes");
    return b;
  }

  void make_barrier(Thread& t, uint64_t at, uint32_t arrivals) {
    if (at % 8) fault(t, "misaligned barrier");
    if (barriers.size() == BARRIERS) fault(t, "more barriers than are emulated");
    if (barriers.count(at)) fault(t, "a barrier is there already");
    memory(t, SHARED, rank * WINDOW + at, 8, true, 8);
    Barrier b;
    b.arrivals = b.left = arrivals;
    b.number = (unsigned)barriers.size();
    b.made = {rank, (int)t.index, t.tick, false};
    b.arriving = b.over = Ticks(t.clock->ticks.size(), 0);
    barriers[at] = b;
  }

  void end_phase(Barrier& b) {
    if (b.left || b.bytes) return;
    b.phase++;
    b.left = b.arrivals;
    join(b.over, b.arriving);
    b.over[number_of(b)] = b.phase;
  }

  void arrive(Thread& t, uint64_t at, uint32_t bytes) {
    Block& owner = owner_of(t, at);
    auto& b = barrier_at(t, at, owner);
    if (&owner != this) add(t, owner.touched);
    if (b.left == 0) fault(t, "more arrivals than a phase has");
    release(t, b.arriving);
    b.left--;
    b.bytes += bytes;
    owner.end_phase(b);
  }

  static bool is_over(const Barrier& b, uint64_t parity) { return (b.phase & 1) != parity; }

  // To this block, or to those of a cluster that a mask names.
  void begin_bulk(Thread& t, const Bulk& bulk, uint32_t mask) {
    if (bulk.to % 16 || bulk.from % 16 || bulk.bytes % 16) fault(t, "misaligned copy");
    if (bulk.to + bulk.bytes > shared.size()) fault(t, "copy beyond shared memory");
    if (!is_allocated(bulk.from, bulk.bytes)) fault(t, "copy of memory that is not allocated");
    if (accessed) accessed(bulk.from, bulk.bytes, false);
    for (uint64_t other = 0; mask >> other; other++)
      if (mask >> other & 1) {
        uint64_t window = other * WINDOW;
        Block& owner = owner_of(t, window);
        if (&owner != this) add(t, owner.touched);
        begin_bulk_at(t, bulk, owner);
      }
  }

  void begin_bulk_at(Thread& t, const Bulk& bulk, Block& owner) {
    if (!barrier_at(t, bulk.barrier, owner).shown) fault(t, "a barrier that copies may not see: a fence is missing");
    for (uint64_t at = bulk.to; at < bulk.to + bulk.bytes; at++) {
      auto& s = owner.shadow[at];
      std::string byte = "shared byte " + std::to_string(at);
      if (s.written.tick || s.read.tick || s.read_by_others.tick)
        fault(t, byte + " was accessed by threads: a fence before a copy is missing");
      if (s.copied_to) fault(t, "race: " + byte + ", to which a copy is under way");
      if (s.copier >= 0 && !knows(t, s.copier, s.copied)) fault(t, "race: " + byte + ", copied to before");
      for (auto& w : owner.warpgroups)
        if (uint32_t tick = owner.product_reads[at][&w - owner.warpgroups.data()])
          if (!knows(t, owner.number_of(w), tick)) fault(t, "race: " + byte + ", which a product may still read");
      s.copied_to = true;
      owner.shared[at] = 0xff;  // NaN
    }
    owner.bulks.push_back(bulk);
  }

  void finish_newest_bulk() {
    Bulk bulk = bulks.back();
    bulks.pop_back();
    auto& b = barriers.at(bulk.barrier);
    memcpy(shared.data() + bulk.to, (const void*)bulk.from, bulk.bytes);
    for (uint64_t at = bulk.to; at < bulk.to + bulk.bytes; at++) {
      shadow[at].copied_to = false;
      shadow[at].copier = number_of(b);
      shadow[at].copied = (uint32_t)b.phase + 1;
    }
    b.bytes -= bulk.bytes;
    end_phase(b);
  }

  // ------------------------------------------------------------------------ products of a warpgroup
  static const uint64_t DESCRIBED = 0x3fffull | 0x3fffull << 16 | 0x3fffull << 32;  // bits of a descriptor
  // Where 16 bytes of a row of a core matrix are; operands along k, not swizzled.
  uint64_t core_row(Thread& t, uint64_t descriptor, int row, int core) {
    if (descriptor >> 62 || (descriptor >> 49 & 7)) fault(t, "a descriptor with swizzle");
    if (descriptor & ~DESCRIBED) fault(t, "bits of a descriptor that mean nothing");
    uint64_t start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4,
             stride = (descriptor >> 32 & 0x3fff) << 4;
    return start + core * leading + row / 8 * stride + row % 8 * 16;
  }

  void begin_product(Warpgroup& w, Thread* first, const Instruction& in) {
    Product p{&in, first->pc, {}, {}, ++w.tick};
    for (unsigned i = 0; i < WARPGROUP; i++) {
      Thread& t = first[i];
      p.a.push_back(value(t, in.s[0]));
      p.b.push_back(value(t, in.s[1]));
      if (p.a[i] != p.a[0] || p.b[i] != p.b[0]) fault(t, "descriptors that differ within a warpgroup");
      for (auto& o : in.d) {
        if (t.set[o.index] >= t.fenced) fault(t, "a product without a fence after its sums were set");
        t.under_way[o.index] = true;
      }
    }
    for (int operand = 0; operand < 2; operand++)
      for (int row = 0; row < (operand ? in.columns : 64); row++)
        for (int core = 0; core < 2; core++) {
          uint64_t at = core_row(*first, operand ? p.b[0] : p.a[0], row, core);
          if (at + 16 > shared.size()) fault(*first, "product beyond shared memory");
          for (uint64_t b = at; b < at + 16; b++) {
            auto& s = shadow[b];
            std::string byte = "shared byte " + std::to_string(b);
            if (s.written.tick) fault(*first, byte + " was written by threads: a fence before a product is missing");
            if (s.copied_to) fault(*first, "race: " + byte + ", to which a copy is under way");
            if (s.copier >= 0)
              for (unsigned i = 0; i < WARPGROUP; i++)
                if (!knows(first[i], s.copier, s.copied))
                  fault(first[i], "race: " + byte + ", whose copy was not waited for");
            product_reads[b][&w - warpgroups.data()] = w.tick;
          }
        }
    w.groups.back().push_back(p);
  }

  void finish_product(Thread* first, const Product& p) {
    int columns = p.in->columns, size = p.in->from == BF16 ? 2 : 4, unit = 16 / size, terms = 2 * unit;
    std::vector<double> a(64 * terms), b(terms * columns), sums(64 * columns);
    auto load = [&](uint64_t descriptor, int rows, std::vector<double>& to, int row_step, int term_step) {
      for (int row = 0; row < rows; row++)
        for (int term = 0; term < terms; term++) {
          uint32_t x = 0;
          memcpy(&x, shared.data() + core_row(*first, descriptor, row, term / unit) + term % unit * size, size);
          to[row * row_step + term * term_step] = size == 2 ? from_bf16((uint16_t)x) : truncated_to_tf32(x);
        }
    };
    load(p.a[0], 64, a, terms, 1);
    load(p.b[0], columns, b, 1, columns);
    auto each = [&](auto&& use) {  // of the sums: the thread and register that have it
      for (int row = 0; row < 64; row++)
        for (int column = 0; column < columns; column++) {
          Thread& t = first[row / 16 * 32 + row % 8 * 4 + column % 8 / 2];
          use(t, p.in->d[column / 8 * 4 + row % 16 / 8 * 2 + column % 2].index, sums[row * columns + column]);
        }
    };
    each([](Thread& t, int index, double& sum) { sum = as<float>(t.r[index]); });
    for (int row = 0; row < 64; row++)
      for (int term = 0; term < terms; term++)
        for (int column = 0; column < columns; column++)
          sums[row * columns + column] += a[row * terms + term] * b[term * columns + column];
    each([](Thread& t, int index, double& sum) {
      t.r[index] = bits((float)sum);
      t.under_way[index] = false;
    });
  }

  void wait_for_products(Warpgroup& w, Thread* first, size_t keep) {
    while (w.groups.size() - 1 > keep) {
      for (auto& p : w.groups.front()) {
        finish_product(first, p);
        Ticks done(first->clock->ticks.size(), 0);
        done[number_of(w)] = p.tick;
        learn(first, WARPGROUP, done);
      }
      w.groups.pop_front();
    }
  }

  void together_as_warpgroup(unsigned number) {
    Thread* first = &threads[WARPGROUP * number];
    auto& w = warpgroups[number];
    const Instruction& in = kernel.code[first->pc];
    if (in.op == WGMMA) begin_product(w, first, in);
    else if (in.op == WGMMA_COMMIT) w.groups.emplace_back();
    else wait_for_products(w, first, value(*first, in.s[0]));
    for (unsigned i = 0; i < WARPGROUP; i++) {
      first[i].pc++;
      first[i].state = RUNNING;
    }
  }

  // Before an instruction that is no product's.
  void watch_registers(Thread& t, const Instruction& in) {
    t.time++;
    for (auto* operands : {&in.d, &in.s})
      for (auto& o : *operands)
        if (!o.immediate && t.under_way[o.index]) fault(t, "a register of sums that were not waited for");
    if (in.op != ST)
      for (auto& o : in.d)
        if (!o.immediate) t.set[o.index] = t.time;
  }

  [[noreturn]] void fault(const Thread& t, const std::string& what) {
    throw std::runtime_error(what + " by thread " + std::to_string(t.index) + " of block " + std::to_string(at.x) +
                             "," + std::to_string(at.y) + " in " + kernel.name.substr(0, 200) + ": " +
                             kernel.lines[t.pc]);
  }

  uint64_t value(Thread& t, const Operand& o) {
    return !o.immediate ? t.r[o.index] : o.shared ? rank * WINDOW + o.value : o.value;
  }
  uint64_t address(Thread& t, const Operand& o) { return o.immediate ? value(t, o) : t.r[o.index] + o.value; }

  // Of a byte that a thread of block `by` touches.
  void watch(Block& by, Thread& t, uint64_t at, int bytes, bool write) {
    for (uint64_t b = at; b < at + bytes; b++) {
      auto race = [&](const std::string& with, const Access& a) {
        std::string other = a.rank < 0 ? "" : std::to_string(a.thread) + " of block " + std::to_string(a.rank);
        by.fault(t, "race: shared byte " + std::to_string(b) + " of block " + std::to_string(rank) + with + other);
      };
      auto& s = shadow[b];
      if (s.copied_to) race(", to which a copy is under way", {});
      if (s.copier >= 0 && !by.knows(t, s.copier, s.copied)) race(", copied to", {});
      if (!by.knows(t, s.written)) race(write ? " written, written by thread " : " read, written by thread ", s.written);
      if (write) {
        for (auto* read : {&s.read, &s.read_by_others})
          if (!by.knows(t, *read)) race(" written, read by thread ", *read);
        s.written = {by.rank, (int)t.index, t.tick, false};
        s.read = s.read_by_others = {};
        continue;
      }
      by.add(t, by.rank == rank ? s.read : s.read_by_others);
    }
  }

  // An access of a thread to those before it, which it stands for if it knows them.
  void add(const Thread& t, Access& before) const {
    Access me{rank, (int)t.index, t.tick, false};
    if (!knows(t, before)) {
      bool here = before.rank == rank, warp = here && (!before.several || before.warp) && before.thread / 32 == me.thread / 32;
      me = {here ? rank : SEVERAL, me.thread, std::max(me.tick, before.tick), true, warp};
    }
    before = me;
  }

  uint8_t* memory(Thread& t, Space space, uint64_t at, int bytes, bool write, int aligned) {
    if (aligned && at % aligned) fault(t, "misaligned access of " + std::to_string(bytes) + " bytes");
    if (space == SHARED) {
      at = own(t, at);
      if (at + bytes > shared.size() || at + bytes < at)
        fault(t, "shared access at " + std::to_string(at) + " beyond " + std::to_string(shared.size()));
      watch(*this, t, at, bytes, write);
      return shared.data() + at;
    }
    if (space == CLUSTER) {
      Block& owner = owner_of(t, at);
      if (&owner == this) return memory(t, SHARED, rank * WINDOW + at, bytes, write, 0);
      if (at + bytes > owner.shared.size())
        fault(t, "shared access at " + std::to_string(at) + " beyond " + std::to_string(owner.shared.size()));
      owner.watch(*this, t, at, bytes, write);
      add(t, owner.touched);
      return owner.shared.data() + at;
    }
    if (space == LOCAL) fault(t, "local memory");
    if (!is_allocated(at, bytes)) fault(t, std::string(write ? "write" : "read") + " of memory that is not allocated");
    if (accessed) accessed(at, bytes, write);
    return (uint8_t*)at;
  }

  static uint64_t extended(Type type, const uint8_t* p) {
    uint64_t v = 0;
    memcpy(&v, p, size_of(type));
    return is_signed(type) ? (uint64_t)sign_extended(type, v) : v;
  }

  void finish_copies(Thread& t, size_t keep) {  // the open group does not count
    while (t.groups.size() - 1 > keep) {
      for (auto& c : t.groups.front()) {
        uint8_t* from = c.from_bytes ? memory(t, GLOBAL, c.from, c.from_bytes, false, 0) : nullptr;
        for (int b = 0; b < c.bytes; b++) shadow[own(t, c.to) + b].copied_to = false;
        uint8_t* to = memory(t, SHARED, c.to, c.bytes, true, 0);
        memset(to, 0, c.bytes);
        if (from) memcpy(to, from, c.from_bytes);
      }
      t.groups.pop_front();
    }
  }

  template <class T>
  static uint64_t integer(Op op, uint64_t x, uint64_t y, bool& bad) {
    using U = typename std::make_unsigned<T>::type;
    T a = (T)x, b = (T)y;
    switch (op) {
      case ADD: return (uint64_t)(U)((U)a + (U)b);
      case SUB: return (uint64_t)(U)((U)a - (U)b);
      case MUL_LO: return (uint64_t)(U)((uint64_t)a * (uint64_t)b);
      case MUL_HI: return (uint64_t)(U)(T)(((__int128)a * (__int128)b) >> (8 * sizeof(T)));
      case DIV:
        if (b == 0) {
          bad = true;
          return 0;
        }
        return (uint64_t)(U)(b == (T)-1 && std::is_signed<T>::value ? (T)(0 - (U)a) : a / b);
      case REM:
        if (b == 0) {
          bad = true;
          return 0;
        }
        return (uint64_t)(U)(b == (T)-1 && std::is_signed<T>::value ? 0 : a % b);
      case MIN: return (uint64_t)(U)std::min(a, b);
      case MAX: return (uint64_t)(U)std::max(a, b);
      default: return 0;
    }
  }

  template <class T>
  static uint64_t floating(Op op, uint64_t x, uint64_t y) {
    T a = as<T>(x), b = as<T>(y);
    switch (op) {
      case ADD: return bits<T>(a + b);
      case SUB: return bits<T>(a - b);
      case MUL_LO: return bits<T>(a * b);
      case DIV: return bits<T>(a / b);
      case MIN: return bits<T>(a != a ? b : b != b ? a : (a == b ? (std::signbit(a) ? a : b) : std::min(a, b)));
      case MAX: return bits<T>(a != a ? b : b != b ? a : (a == b ? (std::signbit(a) ? b : a) : std::max(a, b)));
      default: return 0;
    }
  }

  uint64_t arithmetic(Thread& t, const Instruction& in, uint64_t x, uint64_t y) {
    bool bad = false;
    uint64_t v;
    switch (in.type) {
      case F32: v = floating<float>(in.op, x, y); break;
      case F64: v = floating<double>(in.op, x, y); break;
      case S16: v = integer<int16_t>(in.op, x, y, bad); break;
      case U16:
      case B16: v = integer<uint16_t>(in.op, x, y, bad); break;
      case S32: v = integer<int32_t>(in.op, x, y, bad); break;
      case U32:
      case B32: v = integer<uint32_t>(in.op, x, y, bad); break;
      case S64: v = integer<int64_t>(in.op, x, y, bad); break;
      case U64:
      case B64: v = integer<uint64_t>(in.op, x, y, bad); break;
      default: fault(t, "type");
    }
    if (bad) fault(t, "division by zero");
    return v;
  }

  static int64_t sign_extended(Type type, uint64_t v) {
    switch (type) {
      case S8: return (int8_t)v;
      case S16: return (int16_t)v;
      case S32: return (int32_t)v;
      default: return (int64_t)v;
    }
  }
  static uint64_t masked(Type type, uint64_t v) {
    int n = size_of(type);
    return n == 8 ? v : v & ((1ull << 8 * n) - 1);
  }
  static bool is_signed(Type type) { return type >= S8 && type <= S64; }
  static bool is_float(Type type) { return type >= F16; }

  static double rounded(double x, Rounding how) {
    switch (how) {
      case RZI: return trunc(x);
      case RMI: return floor(x);
      case RPI: return ceil(x);
      default: return nearbyint(x);
    }
  }

  uint64_t converted(Thread& t, const Instruction& in, uint64_t v) {
    if (in.to_tf32) return bits(rounded_to_tf32(as<float>(v)));
    if (is_float(in.from)) {
      double x = in.from == F64   ? as<double>(v)
                 : in.from == F32 ? (double)as<float>(v)
                 : in.from == F16 ? half((uint16_t)v)
                                  : from_bf16((uint16_t)v);
      if (in.rounding >= RNI && is_float(in.type)) x = rounded(x, in.rounding);
      switch (in.type) {
        case F64: return bits(x);
        case F32: {
          if (in.rounding == RZ) fault(t, "rounding");
          float f = (float)x;
          return bits(f);
        }
        case BF16: return to_bf16((float)x);
        default: break;
      }
      x = rounded(x, in.rounding);
      int n = 8 * size_of(in.type);
      if (is_signed(in.type)) {
        double most = ldexp(1.0, n - 1);
        int64_t i = x != x      ? (n == 64 ? INT64_MIN : 0)
                    : x >= most ? (n == 64 ? INT64_MAX : (int64_t)most - 1)
                    : x < -most ? (n == 64 ? INT64_MIN : -(int64_t)most)
                                : (int64_t)x;
        return masked(in.type, (uint64_t)i);
      }
      double most = ldexp(1.0, n);
      uint64_t u = x != x      ? (n == 64 ? 1ull << 63 : 0)
                   : x >= most ? (n == 64 ? ~0ull : (uint64_t)most - 1)
                   : x < 0     ? 0
                               : (uint64_t)x;
      return masked(in.type, u);
    }
    if (is_float(in.type)) {
      if (in.type == F32)
        return is_signed(in.from) ? bits((float)sign_extended(in.from, v)) : bits((float)masked(in.from, v));
      if (in.type == F64)
        return is_signed(in.from) ? bits((double)sign_extended(in.from, v)) : bits((double)masked(in.from, v));
      fault(t, "conversion");
    }
    uint64_t wide = is_signed(in.from) ? (uint64_t)sign_extended(in.from, v) : masked(in.from, v);
    return masked(in.type, wide);
  }

  // Runs a thread until it waits.
  void go(Thread& t) {
    const auto& code = kernel.code;
    auto& r = t.r;
    uint64_t count = 0;
    for (;; t.pc++) {
      const Instruction& in = code[t.pc];
      if (in.guard >= 0 && (r[in.guard] != 0) == in.negated) continue;
      if (++count > 400000000ull) fault(t, "endless");
      if (kernel.asynchronous && in.op != WGMMA) watch_registers(t, in);
      auto S = [&](int i) { return value(t, in.s[i]); };
      auto D = [&](uint64_t v) { r[in.d[0].index] = v; };
      switch (in.op) {
        case ADD:
        case SUB:
        case MUL_LO:
        case MUL_HI:
        case DIV:
        case REM:
        case MIN:
        case MAX: D(arithmetic(t, in, S(0), S(1))); break;
        case MUL_WIDE:
          if (in.type == S32) D((uint64_t)((int64_t)(int32_t)S(0) * (int64_t)(int32_t)S(1)));
          else if (in.type == U32) D((uint64_t)(uint32_t)S(0) * (uint32_t)S(1));
          else if (in.type == S16) D((uint32_t)((int32_t)(int16_t)S(0) * (int32_t)(int16_t)S(1)));
          else if (in.type == U16) D((uint32_t)(uint16_t)S(0) * (uint16_t)S(1));
          else fault(t, "type");
          break;
        case MAD_LO: D(masked(in.type, S(0) * S(1) + S(2))); break;
        case MAD_WIDE:
          if (in.type == S32) D((uint64_t)((int64_t)(int32_t)S(0) * (int64_t)(int32_t)S(1)) + S(2));
          else if (in.type == U32) D((uint64_t)(uint32_t)S(0) * (uint32_t)S(1) + S(2));
          else fault(t, "type");
          break;
        case FMA:
          if (in.type == F32) D(bits(fmaf(as<float>(S(0)), as<float>(S(1)), as<float>(S(2)))));
          else if (in.type == F64) D(bits(fma(as<double>(S(0)), as<double>(S(1)), as<double>(S(2)))));
          else fault(t, "type");
          break;
        case ABS:
          if (in.type == F32) D(bits(fabsf(as<float>(S(0)))));
          else if (in.type == F64) D(bits(fabs(as<double>(S(0)))));
          else {
            int64_t v = sign_extended(in.type, S(0));
            D(masked(in.type, (uint64_t)(v < 0 ? 0 - (uint64_t)v : (uint64_t)v)));
          }
          break;
        case NEG:
          if (in.type == F32) D(bits(-as<float>(S(0))));
          else if (in.type == F64) D(bits(-as<double>(S(0))));
          else D(masked(in.type, 0 - S(0)));
          break;
        case NOT: D(in.type == PRED ? !S(0) : masked(in.type, ~S(0))); break;
        case AND: D(masked(in.type, S(0) & S(1))); break;
        case OR: D(masked(in.type, S(0) | S(1))); break;
        case XOR: D(masked(in.type, S(0) ^ S(1))); break;
        case SHL: {
          uint64_t n = (uint32_t)S(1);
          int w = 8 * size_of(in.type);
          D(n >= (uint64_t)w ? 0 : masked(in.type, S(0) << n));
          break;
        }
        case SHR: {
          uint64_t n = (uint32_t)S(1);
          int w = 8 * size_of(in.type);
          if (is_signed(in.type)) {
            int64_t v = sign_extended(in.type, S(0));
            D(masked(in.type, (uint64_t)(v >> (n >= (uint64_t)w ? w - 1 : n))));
          } else D(n >= (uint64_t)w ? 0 : masked(in.type, S(0)) >> n);
          break;
        }
        case MOV: D(in.type == PRED ? S(0) : masked(in.type, S(0))); break;
        case MOV_PACK: {
          int w = 8 * size_of(in.type) / (int)in.s.size();
          uint64_t v = 0;
          for (size_t i = 0; i < in.s.size(); i++) v |= (w == 64 ? S(i) : S(i) & ((1ull << w) - 1)) << (w * i);
          D(v);
          break;
        }
        case MOV_UNPACK: {
          int w = 8 * size_of(in.type) / (int)in.d.size();
          uint64_t v = S(0);
          for (size_t i = 0; i < in.d.size(); i++) r[in.d[i].index] = (v >> (w * i)) & ((1ull << w) - 1);
          break;
        }
        case CVT: D(converted(t, in, S(0))); break;
        case CVT_PAIR:
          if (in.type != BF16) fault(t, "type");
          D((uint64_t)to_bf16(as<float>(S(0))) << 16 | to_bf16(as<float>(S(1))));
          break;
        case SETP: {
          bool v;
          if (in.type == F32) v = compare(in.compare, as<float>(S(0)), as<float>(S(1)));
          else if (in.type == F64) v = compare(in.compare, as<double>(S(0)), as<double>(S(1)));
          else if (is_signed(in.type))
            v = compare(in.compare, sign_extended(in.type, S(0)), sign_extended(in.type, S(1)));
          else v = compare(in.compare, masked(in.type, S(0)), masked(in.type, S(1)));
          D(v);
          break;
        }
        case SELP: D(masked(in.type, S(2) ? S(0) : S(1))); break;
        case RCP:
          if (in.type == F32) D(bits(1.0f / as<float>(S(0))));
          else D(bits(1.0 / as<double>(S(0))));
          break;
        case SQRT:
          if (in.type == F32) D(bits(sqrtf(as<float>(S(0)))));
          else D(bits(sqrt(as<double>(S(0)))));
          break;
        case CLZ: {
          uint64_t v = masked(in.type, S(0));
          int w = 8 * size_of(in.type), n = 0;
          while (n < w && !(v >> (w - 1 - n) & 1)) n++;
          D(n);
          break;
        }
        case POPC: D(__builtin_popcountll(masked(in.type, S(0)))); break;
        case PRMT: {
          uint64_t all = (S(0) & 0xffffffffull) | S(1) << 32, how = S(2), v = 0;
          for (int i = 0; i < 4; i++) {
            int n = how >> 4 * i & 15;
            uint64_t b = all >> 8 * (n & 7) & 255;
            if (n & 8) b = b & 128 ? 255 : 0;
            v |= b << 8 * i;
          }
          D(v);
          break;
        }
        case LD: {
          int n = size_of(in.type), all = n * in.vector;
          uint8_t* p = memory(t, in.space, address(t, in.s[0]), all, false, all);
          for (int i = 0; i < in.vector; i++) r[in.d[i].index] = extended(in.type, p + n * i);
          break;
        }
        case ST: {
          int n = size_of(in.type), all = n * in.vector;
          uint8_t* p = memory(t, in.space, address(t, in.d[0]), all, true, all);
          for (int i = 0; i < in.vector; i++) {
            uint64_t v = value(t, in.s[i]);
            memcpy(p + n * i, &v, n);
          }
          break;
        }
        case LD_PARAM: {
          uint64_t at = address(t, in.s[0]);
          const uint8_t* p = at < (uint64_t)kernel.parameter_bytes ? launch.parameters.data() + at
                                                                   : t.local.data() + (at - kernel.parameter_bytes);
          int n = size_of(in.type);
          for (int i = 0; i < in.vector; i++) r[in.d[i].index] = extended(in.type, p + n * i);
          break;
        }
        case ST_PARAM: {
          uint64_t v = value(t, in.s[0]);
          memcpy(t.local.data() + (address(t, in.d[0]) - kernel.parameter_bytes), &v, size_of(in.type));
          break;
        }
        case BRA: t.pc = in.target - 1; break;
        case RET:
          if (t.groups.size() > 1 || !t.groups[0].empty()) {
            t.groups.emplace_back();
            finish_copies(t, 0);
          }
          if (!knows(t, touched)) fault(t, "an end, after which others may touch the shared memory");
          t.state = DONE;
          return;
        case BAR: t.state = AT_BARRIER; return;
        case CALL_GRID_HANDLE: {
          uint64_t v = 1;
          memcpy(t.local.data() + (in.d[0].value - kernel.parameter_bytes), &v, 8);
          break;
        }
        case CALL_GRID_SYNC:
          if (!launch.cooperative) fault(t, "grid synchronization in a launch that is not cooperative");
          t.state = AT_GRID;
          return;
        case CLUSTER_ARRIVE:
          if (!cluster) fault(t, "a barrier of the cluster in a launch without clusters");
          arrive_at_cluster(t);
          break;
        case CLUSTER_WAIT:
          if (t.arrived != t.waited + 1) fault(t, "a wait at a barrier of the cluster without an arrival");
          t.state = AT_CLUSTER;
          return;
        case MAPA: D(S(1) * WINDOW + own(t, S(0))); break;
        case MMA:
        case LDMATRIX:
        case SET_REGISTERS:
        case WARP_SYNC: t.state = AT_WARP; return;
        case MBARRIER_INIT: make_barrier(t, own(t, address(t, in.s[0])), (uint32_t)S(1)); break;
        case MBARRIER_ARRIVE: arrive(t, address(t, in.s[0]), in.s.size() > 1 ? (uint32_t)S(1) : 0); break;
        case MBARRIER_WAIT: {
          auto& b = barrier_at(t, own(t, address(t, in.s[0])), *this);
          if (is_over(b, S(1))) {
            learn(&t, 1, b.over);
            D(1);
          } else if (t.told_no) {
            t.state = AT_MBARRIER;
            return;
          } else D(0);  // as after the time that the instruction waits
          t.told_no = !is_over(b, S(1));
          break;
        }
        case FENCE_PROXY:
          for (auto& [at, b] : barriers)
            if (b.made.thread == (int)t.index) b.shown = true;
          break;
        case BULK_COPY:
          begin_bulk(t, {own(t, address(t, in.d[0])), address(t, in.s[0]), own(t, address(t, in.s[2])), (int)S(1)},
                     in.s.size() > 3 ? (uint32_t)S(3) & 0xffff : 1u << rank);
          break;
        case WGMMA_FENCE: t.fenced = t.time; break;
        case WGMMA:
        case WGMMA_COMMIT:
        case WGMMA_WAIT: t.state = AT_WARPGROUP; return;
        case CP_ASYNC: {
          uint64_t to = address(t, in.d[0]), from = address(t, in.s[0]);
          int n = (int)S(1), given = in.s.size() > 2 ? (int)(uint32_t)S(2) : n;
          if (given > n) fault(t, "more bytes than a copy has");
          if (to % n || (given && from % n)) fault(t, "misaligned copy");
          memory(t, SHARED, to, n, true, 0);
          for (int b = 0; b < n; b++) shadow[own(t, to) + b].copied_to = true;  // from now until somebody waits for it
          t.groups.back().push_back({to, from, n, given});
          break;
        }
        case CP_COMMIT: t.groups.emplace_back(); break;
        case CP_WAIT: finish_copies(t, in.d[0].value); break;
        default: fault(t, "instruction");
      }
    }
  }

  // False where the warp has to wait.
  bool together(unsigned warp) {
    Thread* lane[32];
    for (int i = 0; i < 32; i++) lane[i] = &threads[32 * warp + i];
    const Instruction& in = kernel.code[lane[0]->pc];
    if (in.op == MMA && in.from == B32) {
      float a[16][8], b[8][8];
      for (int l = 0; l < 32; l++) {
        int g = l / 4, q = l % 4;
        auto S = [&](int i) { return truncated_to_tf32((uint32_t)value(*lane[l], in.s[i])); };
        a[g][q] = S(0);
        a[g + 8][q] = S(1);
        a[g][q + 4] = S(2);
        a[g + 8][q + 4] = S(3);
        b[q][g] = S(4);
        b[q + 4][g] = S(5);
      }
      accumulate<8>(in, lane, a, b, 6);
    } else if (in.op == MMA) {
      float a[16][16], b[16][8];
      for (int l = 0; l < 32; l++) {
        int g = l / 4, q = l % 4;
        for (int h = 0; h < 2; h++) {
          auto S = [&](int i) { return from_bf16((uint16_t)(value(*lane[l], in.s[i]) >> 16 * h)); };
          a[g][2 * q + h] = S(0);
          a[g + 8][2 * q + h] = S(1);
          a[g][2 * q + 8 + h] = S(2);
          a[g + 8][2 * q + 8 + h] = S(3);
          b[2 * q + h][g] = S(4);
          b[2 * q + 8 + h][g] = S(5);
        }
      }
      accumulate<16>(in, lane, a, b, 6);
    } else if (in.op == LDMATRIX) {
      uint8_t* rows[32];
      for (size_t i = 0; i < 8 * in.d.size(); i++)
        rows[i] = memory(*lane[i], SHARED, address(*lane[i], in.s[0]), 16, false, 16);
      for (int l = 0; l < 32; l++)
        for (size_t i = 0; i < in.d.size(); i++) {
          uint32_t v = 0;
          if (!in.transposed) memcpy(&v, rows[8 * i + l / 4] + 4 * (l % 4), 4);
          else
            for (int h = 0; h < 2; h++) {
              uint16_t e;
              memcpy(&e, rows[8 * i + 2 * (l % 4) + h] + 2 * (l / 4), 2);
              v |= (uint32_t)e << 16 * h;
            }
          lane[l]->r[in.d[i].index] = v;
        }
    } else if (in.op == SET_REGISTERS) {
      unsigned count = (unsigned)value(*lane[0], in.s[0]), has = lane[0]->may_use;
      if (count % 8 || count < 24 || count > 256 || (in.more ? count < has : count > has))
        fault(*lane[0], "registers: a warp has " + std::to_string(has));
      if (in.more && 32 * (count - has) > registers_left) return false;
      registers_left += 32 * has - 32 * count;
      for (auto t : lane) t->may_use = count;
    } else if (in.op == WARP_SYNC) {
      meet(32 * warp, 32);
    }
    for (auto t : lane) {
      t->pc++;
      t->state = RUNNING;
    }
    return true;
  }

  template <int K>
  void accumulate(const Instruction& in, Thread** lane, float (&a)[16][K], float (&b)[K][8], int c) {
    float out[32][4];
    for (int l = 0; l < 32; l++)
      for (int e = 0; e < 4; e++) {
        int row = l / 4 + 8 * (e / 2), column = 2 * (l % 4) + e % 2;
        double sum = as<float>(value(*lane[l], in.s[c + e]));
        for (int k = 0; k < K; k++) sum += (double)a[row][k] * b[k][column];
        out[l][e] = (float)sum;
      }
    for (int l = 0; l < 32; l++)
      for (int e = 0; e < 4; e++) lane[l]->r[in.d[e].index] = bits(out[l][e]);
  }

  // Until no thread can go on without a copy, or another block; whether any did.
  bool go_on() {
    for (bool any = false;;) {
      bool moved = false;
      for (auto& t : threads)
        if (t.state == RUNNING) {
          go(t);
          moved = true;
        }
      for (unsigned w = 0; w < threads.size() / 32; w++) {
        bool all = true;
        for (unsigned i = 32 * w; i < 32 * w + 32; i++)
          all &= threads[i].state == AT_WARP && threads[i].pc == threads[32 * w].pc;
        if (all) moved |= together(w);
      }
      for (unsigned w = 0; w < warpgroups.size(); w++) {
        bool all = true;
        for (unsigned i = WARPGROUP * w; i < WARPGROUP * (w + 1); i++)
          all &= threads[i].state == AT_WARPGROUP && threads[i].pc == threads[WARPGROUP * w].pc;
        if (all) {
          together_as_warpgroup(w);
          moved = true;
        }
      }
      for (auto& t : threads)
        if (t.state == AT_MBARRIER) {
          const Instruction& in = kernel.code[t.pc];
          if (is_over(barriers.at(own(t, address(t, in.s[0]))), value(t, in.s[1]))) {
            t.state = RUNNING;
            moved = true;
          }
        }
      if (!moved && !leave_barrier()) return any;
      any = true;
    }
  }

  // Whether all threads wait at a barrier of the block, which they leave.
  bool leave_barrier() {
    unsigned done = 0, barrier = 0;
    int pc = -1;
    for (auto& t : threads) {
      done += t.state == DONE;
      barrier += t.state == AT_BARRIER;
      if (t.state == AT_BARRIER) {
        if (pc >= 0 && t.pc != pc) fault(t, "threads of a block wait at different barriers");
        pc = t.pc;
      }
    }
    if (!barrier || done + barrier != threads.size()) return false;
    for (unsigned first = 0; first < threads.size(); first += 32)  // since 7.0 none waits for a warp that has ended
      for (unsigned i = first; i < std::min<unsigned>(first + 32, threads.size()); i++)
        if ((threads[i].state == DONE) != (threads[first].state == DONE))
          fault(threads[i], "a barrier that some threads of a warp never reach");
    meet(0, (unsigned)threads.size());
    for (auto& t : threads)
      if (t.state == AT_BARRIER) {
        t.state = RUNNING;
        t.pc++;
      }
    return true;
  }

  // What all threads of the block do, which have ended or wait for the grid or the cluster; RUNNING where none may go on.
  State state() {
    for (State all : {DONE, AT_GRID, AT_CLUSTER}) {
      unsigned count = 0;
      for (auto& t : threads) count += t.state == all;
      if (count == threads.size()) return all;
    }
    return RUNNING;
  }

  void stuck() {
    for (auto& t : threads)
      if (t.state != DONE) fault(t, "deadlock");
  }

  // Until every thread has ended or waits for the grid; true when all have ended.
  bool advance() {
    for (;;) {
      go_on();
      if (bulks.empty()) {
        if (state() != RUNNING) return state() == DONE;
        stuck();
      }
      finish_newest_bulk();
    }
  }
};

// Blocks that wait for one another's arrivals and copies; a copy comes when none of them can go on without it.
void run(Cluster& cluster) {
  auto& blocks = cluster.blocks;
  auto all = [&](State state) {
    return std::all_of(blocks.begin(), blocks.end(), [&](auto& b) { return b->state() == state; });
  };
  for (;;) {
    bool moved = false;
    for (auto& b : blocks) moved |= b->go_on();
    if (moved) continue;
    auto copied_to = std::find_if(blocks.rbegin(), blocks.rend(), [](auto& b) { return !b->bulks.empty(); });
    if (copied_to != blocks.rend()) {
      (*copied_to)->finish_newest_bulk();
      continue;
    }
    if (all(DONE)) return;
    if (all(AT_CLUSTER)) {
      for (auto& b : blocks) b->leave_cluster();
      continue;
    }
    for (auto& b : blocks)
      if (b->state() != AT_CLUSTER && b->state() != DONE) b->stuck();
    throw std::runtime_error("some blocks ended while others wait for the cluster, in " + blocks[0]->kernel.name);
  }
}

}  // namespace

void execute(const Launch& launch) {
  unsigned threads = launch.block.x * launch.block.y * launch.block.z;
  if (threads == 0 || threads > 1024 || threads > (unsigned)launch.kernel->most_threads)
    throw std::runtime_error("launch: " + std::to_string(threads) + " threads a block, of " +
                             std::to_string(launch.kernel->most_threads) + " in " + launch.kernel->name);
  if (!launch.grid.x || !launch.grid.y || !launch.grid.z || launch.grid.y > 65535 || launch.grid.z > 65535)
    throw std::runtime_error("launch: grid");
  if (launch.cluster) {
    for (unsigned first = 0; first < launch.grid.x; first += launch.cluster) {
      Cluster cluster;
      for (unsigned r = 0; r < launch.cluster; r++)
        cluster.blocks.push_back(std::make_unique<Block>(launch, Dim{first + r, 0, 0}, (int)r, &cluster));
      cluster.arriving.assign(launch.cluster * cluster.blocks[0]->numbers, 0);
      run(cluster);
    }
    return;
  }
  if (launch.cooperative) {
    std::vector<std::unique_ptr<Block>> blocks;
    for (unsigned z = 0; z < launch.grid.z; z++)
      for (unsigned y = 0; y < launch.grid.y; y++)
        for (unsigned x = 0; x < launch.grid.x; x++) blocks.push_back(std::make_unique<Block>(launch, Dim{x, y, z}));
    for (;;) {
      unsigned done = 0;
      for (auto& b : blocks) done += b->advance();
      if (done == blocks.size()) return;
      if (done) throw std::runtime_error("some blocks ended while others wait for the grid, in " + launch.kernel->name);
      for (auto& b : blocks) {
        b->meet(0, threads);
        for (auto& t : b->threads) {
          uint64_t ok = 0;
          memcpy(t.local.data() + (b->kernel.code[t.pc].d[0].value - b->kernel.parameter_bytes), &ok, 4);
          t.state = RUNNING;
          t.pc++;
        }
      }
    }
  }
  for (unsigned z = 0; z < launch.grid.z; z++)
    for (unsigned y = 0; y < launch.grid.y; y++)
      for (unsigned x = 0; x < launch.grid.x; x++) {
        Block block(launch, Dim{x, y, z});
        block.advance();
      }
}

}  // namespace emulator
