// One matrix instruction and a store of its result: the compiler must wait in between, and writes how long as s_nop.
//
//   BUILTIN    the instruction's clang builtin
//   OPERAND    type of A and B; RESULT type of C and D
//   MODIFIERS  its immediate arguments
typedef _Float16 half4 __attribute__((ext_vector_type(4)));
typedef _Float16 half8 __attribute__((ext_vector_type(8)));
typedef __bf16 bfloat8 __attribute__((ext_vector_type(8)));
typedef short short4 __attribute__((ext_vector_type(4)));
typedef int int8v __attribute__((ext_vector_type(8)));
typedef float float4 __attribute__((ext_vector_type(4)));
typedef float float16v __attribute__((ext_vector_type(16)));

extern "C" __global__ void matrix_pass(RESULT* out) {
  OPERAND a, b;
  RESULT c;
  asm volatile("" : "=v"(a), "=v"(b), "=v"(c));  // any values: nothing runs
  *out = BUILTIN(a, b, c, MODIFIERS);
}
