// PTX as decoded instructions, and launches of its kernels.
//
// What is here is what the kernels of this library use; anything else is an error when a module is loaded. All
// arithmetic is IEEE: a kernel with an approximate or flushing instruction is refused.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace emulator {

enum Type : uint8_t { NONE, PRED, B8, B16, B32, B64, U8, U16, U32, U64, S8, S16, S32, S64, F16, BF16, F32, F64 };
inline int size_of(Type type) {
  switch (type) {
    case PRED:
    case B8:
    case U8:
    case S8: return 1;
    case B16:
    case U16:
    case S16:
    case F16:
    case BF16: return 2;
    case B32:
    case U32:
    case S32:
    case F32: return 4;
    default: return 8;
  }
}

enum Op : uint8_t {
  ADD,
  SUB,
  MUL_LO,
  MUL_HI,
  MUL_WIDE,
  MAD_LO,
  MAD_WIDE,
  FMA,
  DIV,
  REM,
  MIN,
  MAX,
  ABS,
  NEG,
  NOT,
  AND,
  OR,
  XOR,
  SHL,
  SHR,
  MOV,
  MOV_PACK,
  MOV_UNPACK,
  CVT,
  CVT_PAIR,
  SETP,
  SELP,
  RCP,
  SQRT,
  LD,
  ST,
  LD_PARAM,
  ST_PARAM,
  BRA,
  RET,
  BAR,
  WARP_SYNC,
  CALL_GRID_HANDLE,
  CALL_GRID_SYNC,
  CLUSTER_ARRIVE,
  CLUSTER_WAIT,
  MAPA,
  MMA,
  LDMATRIX,
  CP_ASYNC,
  CP_COMMIT,
  CP_WAIT,
  NOP,
  SHFL,
  BFE,
  CLZ,
  POPC,
  PRMT,
  MBARRIER_INIT,
  MBARRIER_ARRIVE,
  MBARRIER_WAIT,
  FENCE_PROXY,
  BULK_COPY,
  SET_REGISTERS,
  WGMMA_FENCE,
  WGMMA,
  WGMMA_COMMIT,
  WGMMA_WAIT
};
enum Compare : uint8_t { EQ, NE, LT, LE, GT, GE, EQU, NEU, LTU, LEU, GTU, GEU, NUM, NAN_ };
enum Space : uint8_t { GENERIC, GLOBAL, SHARED, CLUSTER, PARAM, LOCAL };
enum Rounding : uint8_t { DEFAULT, RN, RZ, RNI, RZI, RMI, RPI, RNA };

struct Operand {
  bool immediate = true;
  bool shared = false;  // an address in shared memory, by where it is in its block
  int index = 0;       // of a register
  uint64_t value = 0;  // of an immediate; of an address its offset
};

struct Instruction {
  Op op = NOP;
  Type type = NONE, from = NONE;
  Compare compare = EQ;
  Space space = GENERIC;
  Rounding rounding = DEFAULT;
  uint8_t vector = 1;
  bool negated = false;     // the predicate
  bool transposed = false;  // matrices that ldmatrix reads
  bool to_tf32 = false;
  bool more = false;        // registers that setmaxnreg asks for
  int columns = 0;          // of a warpgroup's product
  int guard = -1;  // register of the predicate
  int target = -1;
  std::vector<Operand> d, s;
  int line = 0;
};

struct Parameter {
  std::string name;
  int size, offset;
};

struct Kernel {
  std::string name;
  std::vector<Instruction> code;
  std::vector<Parameter> parameters;
  int registers = 0, parameter_bytes = 0, shared_bytes = 0, most_threads = 1024, local_bytes = 0;
  bool asynchronous = false;                 // has barriers in shared memory, and what they are for
  int most_dynamic = 49152;  // bytes of shared memory that a launch may ask for
  int large_clusters = 0;    // whether a launch may have clusters of more blocks than every GPU allows
  std::vector<std::string> lines;            // the text of every instruction
  std::vector<std::pair<int, int>> special;  // special registers: which, and the register that holds it
};

struct Module {
  std::map<std::string, std::shared_ptr<Kernel>> kernels;
};

std::shared_ptr<Module> parse(const std::string& text);

struct Dim {
  unsigned x, y, z;
};
struct Launch {
  std::shared_ptr<Kernel> kernel;
  Dim grid, block;
  unsigned dynamic_shared;
  bool cooperative;
  unsigned cluster;                 // blocks of a cluster, along x; 0 without
  std::vector<uint8_t> parameters;  // as the kernel reads them
};

// Raises std::runtime_error for what a GPU would fault on, and for what compute-sanitizer looks for: memory that is not
// allocated, misaligned accesses, races in shared memory (that of other blocks of a cluster too), barriers that not all
// threads reach, shared memory of a block that may have ended.
void execute(const Launch& launch);

// Whether [address, address + size) lies in one allocation of the device.
bool is_allocated(uint64_t address, uint64_t size);

// Told of every access to global memory, (address, bytes, whether it is a write), where somebody listens.
extern std::function<void(uint64_t, int, bool)> accessed;
}  // namespace emulator
