module @jit__lambda attributes {mhlo.num_partitions = 4 : i32, mhlo.num_replicas = 1 : i32} {
  sdy.mesh @mesh = <["tp"=4]> {stablehlo.mesh = {axes = [{name = "tp", size = 4 : i64}]}}
  func.func public @main(%arg0: tensor<1x4x64x8xf32>, %arg1: tensor<1x4x64x8xf32>, %arg2: tensor<32x1x1xf32>, %arg3: tensor<32x1x1xf32>, %arg4: tensor<1x4x8x64xf32>, %arg5: tensor<1x4x8x64xf32>, %arg6: tensor<512x128xf32>, %arg7: tensor<512x128xf32>, %arg8: tensor<1x128xf32>, %arg9: tensor<1x128xf32>, %arg10: tensor<1x128xf32>, %arg11: tensor<1x128xf32>, %arg12: tensor<128x512xf32>, %arg13: tensor<128x512xf32>, %arg14: tensor<256x128xf32>, %arg15: tensor<256x128xf32>, %arg16: tensor<128x768xf32>, %arg17: tensor<128x768xf32>, %arg18: tensor<128x512xf32>, %arg19: tensor<128x512xf32>, %arg20: tensor<1x1x128xf32>, %arg21: tensor<8x1x4x1xi1>, %arg22: tensor<1x1xi32>) -> (tensor<1x1x128xf32> {jax.result_info = "result[0]"}, tensor<1x4x64x8xf32> {jax.result_info = "result[1][0]"}, tensor<1x4x64x8xf32> {jax.result_info = "result[1][1]"}, tensor<1x4x8x64xf32> {jax.result_info = "result[2][0]"}, tensor<1x4x8x64xf32> {jax.result_info = "result[2][1]"}) {
    %0:5 = sdy.manual_computation(%arg0, %arg1, %arg2, %arg3, %arg4, %arg5, %arg6, %arg7, %arg8, %arg9, %arg10, %arg11, %arg12, %arg13, %arg14, %arg15, %arg16, %arg17, %arg18, %arg19, %arg20, %arg21, %arg22) in_shardings=[<@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {}, {}]>, <@mesh, [{}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{"tp"}, {}]>, <@mesh, [{"tp"}, {}]>, <@mesh, [{}, {}]>, <@mesh, [{}, {}]>, <@mesh, [{}, {}]>, <@mesh, [{}, {}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{"tp"}, {}]>, <@mesh, [{"tp"}, {}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{}, {}, {}]>, <@mesh, [{}, {}, {"tp"}, {}]>, <@mesh, [{}, {}]>] out_shardings=[<@mesh, [{}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>] manual_axes={"tp"} (%arg23: tensor<1x1x64x8xf32>, %arg24: tensor<1x1x64x8xf32>, %arg25: tensor<32x1x1xf32>, %arg26: tensor<32x1x1xf32>, %arg27: tensor<1x1x8x64xf32>, %arg28: tensor<1x1x8x64xf32>, %arg29: tensor<128x128xf32>, %arg30: tensor<128x128xf32>, %arg31: tensor<1x128xf32>, %arg32: tensor<1x128xf32>, %arg33: tensor<1x128xf32>, %arg34: tensor<1x128xf32>, %arg35: tensor<128x128xf32>, %arg36: tensor<128x128xf32>, %arg37: tensor<64x128xf32>, %arg38: tensor<64x128xf32>, %arg39: tensor<128x192xf32>, %arg40: tensor<128x192xf32>, %arg41: tensor<128x128xf32>, %arg42: tensor<128x128xf32>, %arg43: tensor<1x1x128xf32>, %arg44: tensor<8x1x1x1xi1>, %arg45: tensor<1x1xi32>) {
      %c = stablehlo.constant dense<0> : tensor<i32>
      %1 = stablehlo.broadcast_in_dim %c, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
      %2 = stablehlo.compare GE, %arg45, %1, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
      %c_0 = stablehlo.constant dense<8> : tensor<i32>
      %3 = stablehlo.broadcast_in_dim %c_0, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
      %4 = stablehlo.compare LT, %arg45, %3, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
      %5 = stablehlo.and %2, %4 : tensor<1x1xi1>
      %c_1 = stablehlo.constant dense<8> : tensor<i32>
      %6 = func.call @_where(%5, %arg45, %c_1) : (tensor<1x1xi1>, tensor<1x1xi32>, tensor<i32>) -> tensor<1x1xi32>
      %7 = stablehlo.broadcast_in_dim %6, dims = [0, 1] : (tensor<1x1xi32>) -> tensor<1x1x1xi32>
      %8 = stablehlo.broadcast_in_dim %6, dims = [0, 2] : (tensor<1x1xi32>) -> tensor<1x1x1xi32>
      %9 = stablehlo.compare EQ, %7, %8, SIGNED : (tensor<1x1x1xi32>, tensor<1x1x1xi32>) -> tensor<1x1x1xi1>
      %10 = func.call @triu(%9) : (tensor<1x1x1xi1>) -> tensor<1x1x1xi1>
      %c_2 = stablehlo.constant dense<false> : tensor<i1>
      %11 = stablehlo.reduce(%10 init: %c_2) applies stablehlo.or across dimensions = [2] : (tensor<1x1x1xi1>, tensor<i1>) -> tensor<1x1xi1>
      %c_3 = stablehlo.constant dense<8> : tensor<i32>
      %12 = stablehlo.broadcast_in_dim %c_3, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
      %13 = stablehlo.compare LT, %6, %12, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
      %14 = stablehlo.not %11 : tensor<1x1xi1>
      %15 = stablehlo.and %13, %14 : tensor<1x1xi1>
      %16 = stablehlo.convert %6 : (tensor<1x1xi32>) -> tensor<1x1xui32>
      %c_4 = stablehlo.constant dense<4294967295> : tensor<ui32>
      %17 = func.call @_where_0(%15, %16, %c_4) : (tensor<1x1xi1>, tensor<1x1xui32>, tensor<ui32>) -> tensor<1x1xui32>
      %18 = stablehlo.slice %arg44 [0:7, 0:1, 0:1, 0:1] : (tensor<8x1x1x1xi1>) -> tensor<7x1x1x1xi1>
      %19 = stablehlo.convert %18 : (tensor<7x1x1x1xi1>) -> tensor<7x1x1x1xi32>
      %c_5 = stablehlo.constant dense<0> : tensor<i32>
      %20 = stablehlo.broadcast_in_dim %c_5, dims = [] : (tensor<i32>) -> tensor<7x1x1x1xi32>
      %21 = stablehlo.compare NE, %19, %20, SIGNED : (tensor<7x1x1x1xi32>, tensor<7x1x1x1xi32>) -> tensor<7x1x1x1xi1>
      %cst = stablehlo.constant dense<0.000000e+00> : tensor<f32>
      %cst_6 = stablehlo.constant dense<-1.2676506E+30> : tensor<f32>
      %22 = func.call @_where_1(%21, %cst, %cst_6) : (tensor<7x1x1x1xi1>, tensor<f32>, tensor<f32>) -> tensor<7x1x1x1xf32>
      %23 = stablehlo.convert %22 : (tensor<7x1x1x1xf32>) -> tensor<7x1x1x1xbf16>
      %24 = stablehlo.reshape %23 : (tensor<7x1x1x1xbf16>) -> tensor<7x1xbf16>
      %25 = stablehlo.slice %arg44 [7:8, 0:1, 0:1, 0:1] : (tensor<8x1x1x1xi1>) -> tensor<1x1x1x1xi1>
      %26 = stablehlo.iota dim = 0 : tensor<1x1xi32>
      %27 = stablehlo.iota dim = 1 : tensor<1x1xi32>
      %c_7 = stablehlo.constant dense<0> : tensor<i32>
      %28 = stablehlo.broadcast_in_dim %c_7, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
      %29 = stablehlo.add %26, %28 : tensor<1x1xi32>
      %30 = stablehlo.compare EQ, %29, %27, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
      %31 = stablehlo.broadcast_in_dim %30, dims = [0, 2] : (tensor<1x1xi1>) -> tensor<1x1x1x1x1xi1>
      %32 = stablehlo.convert %25 : (tensor<1x1x1x1xi1>) -> tensor<1x1x1x1xi32>
      %c_8 = stablehlo.constant dense<0> : tensor<i32>
      %33 = stablehlo.broadcast_in_dim %c_8, dims = [] : (tensor<i32>) -> tensor<1x1x1x1xi32>
      %34 = stablehlo.compare NE, %32, %33, SIGNED : (tensor<1x1x1x1xi32>, tensor<1x1x1x1xi32>) -> tensor<1x1x1x1xi1>
      %35 = stablehlo.broadcast_in_dim %34, dims = [1, 2, 3, 4] : (tensor<1x1x1x1xi1>) -> tensor<1x1x1x1x1xi1>
      %c_9 = stablehlo.constant dense<false> : tensor<i1>
      %36 = stablehlo.broadcast_in_dim %c_9, dims = [] : (tensor<i1>) -> tensor<1x1x1x1x1xi1>
      %37 = stablehlo.compare NE, %35, %36, UNSIGNED : (tensor<1x1x1x1x1xi1>, tensor<1x1x1x1x1xi1>) -> tensor<1x1x1x1x1xi1>
      %38 = stablehlo.convert %37 : tensor<1x1x1x1x1xi1>
      %39 = stablehlo.and %31, %38 : tensor<1x1x1x1x1xi1>
      %cst_10 = stablehlo.constant dense<0.000000e+00> : tensor<f32>
      %cst_11 = stablehlo.constant dense<-1.2676506E+30> : tensor<f32>
      %40 = func.call @_where_2(%39, %cst_10, %cst_11) : (tensor<1x1x1x1x1xi1>, tensor<f32>, tensor<f32>) -> tensor<1x1x1x1x1xf32>
      %41 = stablehlo.convert %40 : (tensor<1x1x1x1x1xf32>) -> tensor<1x1x1x1x1xbf16>
      %42 = stablehlo.reshape %41 : (tensor<1x1x1x1x1xbf16>) -> tensor<1x1xbf16>
      %43:5 = stablehlo.custom_call @AwsNeuronCustomNativeKernel(%arg43, %arg39, %arg40, %arg37, %arg38, %arg35, %arg36, %arg41, %arg42, %arg29, %arg30, %arg33, %arg34, %arg31, %arg32, %arg23, %arg24, %arg27, %arg28, %arg25, %arg26, %24, %42, %17) {api_version = 2 : i32, backend_config = "eyJmdW5jX25hbWUiOiAidHJhbnNmb3JtZXJfdGtnX2VudHJ5IiwgImdyaWQiOiBbMl0sICJoYXNfY29sbGVjdGl2ZXMiOiB0cnVlLCAia2VybmVsX3ZlcnNpb24iOiAxLCAia2xpcl9iaW5hcnkiOiB7ImJpbmFyeSI6ICIiLCAiaW5wdXRfbmFtZXMiOiBbIlgiLCAiV19xa3ZzXzAiLCAiV19xa3ZzXzEiLCAiV19vdXRzXzAiLCAiV19vdXRzXzEiLCAiV19nYXRlc18wIiwgIldfZ2F0ZXNfMSIsICJXX3Vwc18wIiwgIldfdXBzXzEiLCAiV19kb3duc18wIiwgIldfZG93bnNfMSIsICJXX2dhbW1hX3FrdnNfMCIsICJXX2dhbW1hX3FrdnNfMSIsICJXX2dhbW1hX21scHNfMCIsICJXX2dhbW1hX21scHNfMSIsICJLX2NhY2hlc18wIiwgIktfY2FjaGVzXzEiLCAiVl9jYWNoZXNfMCIsICJWX2NhY2hlc18xIiwgIlJvUEVfY29zIiwgIlJvUEVfc2luIiwgInByaW9yX2JpYXMiLCAiYWN0aXZlX2JpYXMiLCAic2xvdHMiXSwgIm91dHB1dF9uYW1lcyI6IFsiaGlkZGVuIiwgIktfY2FjaGVzXzAiLCAiS19jYWNoZXNfMSIsICJWX2NhY2hlc18wIiwgIlZfY2FjaGVzXzEiXX0sICJudW1fbGF5ZXJzIjogMiwgInJlcGxpY2FfZ3JvdXBzIjogW1swLCAxLCAyLCAzXV19", operand_layouts = [dense<[2, 1, 0]> : tensor<3xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[2, 1, 0]> : tensor<3xindex>, dense<[2, 1, 0]> : tensor<3xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>], output_operand_aliases = [#stablehlo.output_operand_alias<output_tuple_indices = [1], operand_index = 15, operand_tuple_indices = []>, #stablehlo.output_operand_alias<output_tuple_indices = [2], operand_index = 16, operand_tuple_indices = []>, #stablehlo.output_operand_alias<output_tuple_indices = [3], operand_index = 17, operand_tuple_indices = []>, #stablehlo.output_operand_alias<output_tuple_indices = [4], operand_index = 18, operand_tuple_indices = []>], result_layouts = [dense<[2, 1, 0]> : tensor<3xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>]} : (tensor<1x1x128xf32>, tensor<128x192xf32>, tensor<128x192xf32>, tensor<64x128xf32>, tensor<64x128xf32>, tensor<128x128xf32>, tensor<128x128xf32>, tensor<128x128xf32>, tensor<128x128xf32>, tensor<128x128xf32>, tensor<128x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x1x64x8xf32>, tensor<1x1x64x8xf32>, tensor<1x1x8x64xf32>, tensor<1x1x8x64xf32>, tensor<32x1x1xf32>, tensor<32x1x1xf32>, tensor<7x1xbf16>, tensor<1x1xbf16>, tensor<1x1xui32>) -> (tensor<1x1x128xf32>, tensor<1x1x64x8xf32>, tensor<1x1x64x8xf32>, tensor<1x1x8x64xf32>, tensor<1x1x8x64xf32>)
      sdy.return %43#0, %43#1, %43#2, %43#3, %43#4 : tensor<1x1x128xf32>, tensor<1x1x64x8xf32>, tensor<1x1x64x8xf32>, tensor<1x1x8x64xf32>, tensor<1x1x8x64xf32>
    } : (tensor<1x4x64x8xf32>, tensor<1x4x64x8xf32>, tensor<32x1x1xf32>, tensor<32x1x1xf32>, tensor<1x4x8x64xf32>, tensor<1x4x8x64xf32>, tensor<512x128xf32>, tensor<512x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>, tensor<128x512xf32>, tensor<128x512xf32>, tensor<256x128xf32>, tensor<256x128xf32>, tensor<128x768xf32>, tensor<128x768xf32>, tensor<128x512xf32>, tensor<128x512xf32>, tensor<1x1x128xf32>, tensor<8x1x4x1xi1>, tensor<1x1xi32>) -> (tensor<1x1x128xf32>, tensor<1x4x64x8xf32>, tensor<1x4x64x8xf32>, tensor<1x4x8x64xf32>, tensor<1x4x8x64xf32>)
    return %0#0, %0#1, %0#2, %0#3, %0#4 : tensor<1x1x128xf32>, tensor<1x4x64x8xf32>, tensor<1x4x64x8xf32>, tensor<1x4x8x64xf32>, tensor<1x4x8x64xf32>
  }
  func.func private @_where(%arg0: tensor<1x1xi1>, %arg1: tensor<1x1xi32>, %arg2: tensor<i32>) -> tensor<1x1xi32> {
    %0 = stablehlo.broadcast_in_dim %arg2, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
    %1 = stablehlo.select %arg0, %arg1, %0 : tensor<1x1xi1>, tensor<1x1xi32>
    return %1 : tensor<1x1xi32>
  }
  func.func private @triu(%arg0: tensor<1x1x1xi1>) -> tensor<1x1x1xi1> {
    %0 = stablehlo.iota dim = 0 : tensor<1x1xi32>
    %c = stablehlo.constant dense<0> : tensor<i32>
    %1 = stablehlo.broadcast_in_dim %c, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
    %2 = stablehlo.add %0, %1 : tensor<1x1xi32>
    %3 = stablehlo.iota dim = 1 : tensor<1x1xi32>
    %4 = stablehlo.compare GE, %2, %3, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
    %5 = stablehlo.broadcast_in_dim %4, dims = [1, 2] : (tensor<1x1xi1>) -> tensor<1x1x1xi1>
    %c_0 = stablehlo.constant dense<false> : tensor<i1>
    %6 = stablehlo.broadcast_in_dim %c_0, dims = [] : (tensor<i1>) -> tensor<1x1x1xi1>
    %7 = stablehlo.select %5, %6, %arg0 : tensor<1x1x1xi1>, tensor<1x1x1xi1>
    return %7 : tensor<1x1x1xi1>
  }
  func.func private @_where_0(%arg0: tensor<1x1xi1>, %arg1: tensor<1x1xui32>, %arg2: tensor<ui32>) -> tensor<1x1xui32> {
    %0 = stablehlo.broadcast_in_dim %arg2, dims = [] : (tensor<ui32>) -> tensor<1x1xui32>
    %1 = stablehlo.select %arg0, %arg1, %0 : tensor<1x1xi1>, tensor<1x1xui32>
    return %1 : tensor<1x1xui32>
  }
  func.func private @_where_1(%arg0: tensor<7x1x1x1xi1>, %arg1: tensor<f32>, %arg2: tensor<f32>) -> tensor<7x1x1x1xf32> {
    %0 = stablehlo.broadcast_in_dim %arg1, dims = [] : (tensor<f32>) -> tensor<7x1x1x1xf32>
    %1 = stablehlo.broadcast_in_dim %arg2, dims = [] : (tensor<f32>) -> tensor<7x1x1x1xf32>
    %2 = stablehlo.select %arg0, %0, %1 : tensor<7x1x1x1xi1>, tensor<7x1x1x1xf32>
    return %2 : tensor<7x1x1x1xf32>
  }
  func.func private @_where_2(%arg0: tensor<1x1x1x1x1xi1>, %arg1: tensor<f32>, %arg2: tensor<f32>) -> tensor<1x1x1x1x1xf32> {
    %0 = stablehlo.broadcast_in_dim %arg1, dims = [] : (tensor<f32>) -> tensor<1x1x1x1x1xf32>
    %1 = stablehlo.broadcast_in_dim %arg2, dims = [] : (tensor<f32>) -> tensor<1x1x1x1x1xf32>
    %2 = stablehlo.select %arg0, %0, %1 : tensor<1x1x1x1x1xi1>, tensor<1x1x1x1x1xf32>
    return %2 : tensor<1x1x1x1x1xf32>
  }
}

// backend_config:
// {
//   "func_name": "transformer_tkg_entry",
//   "grid": [
//     2
//   ],
//   "has_collectives": true,
//   "kernel_version": 1,
//   "klir_binary": {
//     "binary": "",
//     "input_names": [
//       "X",
//       "W_qkvs_0",
//       "W_qkvs_1",
//       "W_outs_0",
//       "W_outs_1",
//       "W_gates_0",
//       "W_gates_1",
//       "W_ups_0",
//       "W_ups_1",
//       "W_downs_0",
//       "W_downs_1",
//       "W_gamma_qkvs_0",
//       "W_gamma_qkvs_1",
//       "W_gamma_mlps_0",
//       "W_gamma_mlps_1",
//       "K_caches_0",
//       "K_caches_1",
//       "V_caches_0",
//       "V_caches_1",
//       "RoPE_cos",
//       "RoPE_sin",
//       "prior_bias",
//       "active_bias",
//       "slots"
//     ],
//     "output_names": [
//       "hidden",
//       "K_caches_0",
//       "K_caches_1",
//       "V_caches_0",
//       "V_caches_1"
//     ]
//   },
//   "num_layers": 2,
//   "replica_groups": [
//     [
//       0,
//       1,
//       2,
//       3
//     ]
//   ]
// }
