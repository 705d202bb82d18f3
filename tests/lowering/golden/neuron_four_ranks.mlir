module @jit__lambda attributes {mhlo.num_partitions = 4 : i32, mhlo.num_replicas = 1 : i32} {
  sdy.mesh @mesh = <["tp"=4]> {stablehlo.mesh = {axes = [{name = "tp", size = 4 : i64}]}}
  func.func public @main(%arg0: tensor<1x4x64x8xf32>, %arg1: tensor<1x4x64x8xf32>, %arg2: tensor<32x1x1xf32>, %arg3: tensor<32x1x1xf32>, %arg4: tensor<1x4x8x64xf32>, %arg5: tensor<1x4x8x64xf32>, %arg6: tensor<512x128xf32>, %arg7: tensor<512x128xf32>, %arg8: tensor<1x128xf32>, %arg9: tensor<1x128xf32>, %arg10: tensor<1x128xf32>, %arg11: tensor<1x128xf32>, %arg12: tensor<128x512xf32>, %arg13: tensor<128x512xf32>, %arg14: tensor<256x128xf32>, %arg15: tensor<256x128xf32>, %arg16: tensor<128x768xf32>, %arg17: tensor<128x768xf32>, %arg18: tensor<128x512xf32>, %arg19: tensor<128x512xf32>, %arg20: tensor<1x1x128xf32>, %arg21: tensor<8x1x4x1xi1>, %arg22: tensor<1x1xi32>) -> (tensor<1x1x128xf32> {jax.result_info = "result[0]"}, tensor<1x4x64x8xf32> {jax.result_info = "result[1][0]"}, tensor<1x4x64x8xf32> {jax.result_info = "result[1][1]"}, tensor<1x4x8x64xf32> {jax.result_info = "result[2][0]"}, tensor<1x4x8x64xf32> {jax.result_info = "result[2][1]"}) {
    %0:5 = sdy.manual_computation(%arg0, %arg1, %arg2, %arg3, %arg4, %arg5, %arg6, %arg7, %arg8, %arg9, %arg10, %arg11, %arg12, %arg13, %arg14, %arg15, %arg16, %arg17, %arg18, %arg19, %arg20, %arg21, %arg22) in_shardings=[<@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {}, {}]>, <@mesh, [{}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{"tp"}, {}]>, <@mesh, [{"tp"}, {}]>, <@mesh, [{}, {}]>, <@mesh, [{}, {}]>, <@mesh, [{}, {}]>, <@mesh, [{}, {}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{"tp"}, {}]>, <@mesh, [{"tp"}, {}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{}, {"tp"}]>, <@mesh, [{}, {}, {}]>, <@mesh, [{}, {}, {"tp"}, {}]>, <@mesh, [{}, {}]>] out_shardings=[<@mesh, [{}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>, <@mesh, [{}, {"tp"}, {}, {}]>] manual_axes={"tp"} (%arg23: tensor<1x1x64x8xf32>, %arg24: tensor<1x1x64x8xf32>, %arg25: tensor<32x1x1xf32>, %arg26: tensor<32x1x1xf32>, %arg27: tensor<1x1x8x64xf32>, %arg28: tensor<1x1x8x64xf32>, %arg29: tensor<128x128xf32>, %arg30: tensor<128x128xf32>, %arg31: tensor<1x128xf32>, %arg32: tensor<1x128xf32>, %arg33: tensor<1x128xf32>, %arg34: tensor<1x128xf32>, %arg35: tensor<128x128xf32>, %arg36: tensor<128x128xf32>, %arg37: tensor<64x128xf32>, %arg38: tensor<64x128xf32>, %arg39: tensor<128x192xf32>, %arg40: tensor<128x192xf32>, %arg41: tensor<128x128xf32>, %arg42: tensor<128x128xf32>, %arg43: tensor<1x1x128xf32>, %arg44: tensor<8x1x1x1xi1>, %arg45: tensor<1x1xi32>) {
      %1 = stablehlo.slice %arg44 [0:7, 0:1, 0:1, 0:1] : (tensor<8x1x1x1xi1>) -> tensor<7x1x1x1xi1>
      %2 = stablehlo.convert %1 : (tensor<7x1x1x1xi1>) -> tensor<7x1x1x1xui8>
      %3 = stablehlo.reshape %2 : (tensor<7x1x1x1xui8>) -> tensor<7x1xui8>
      %4 = stablehlo.slice %arg44 [7:8, 0:1, 0:1, 0:1] : (tensor<8x1x1x1xi1>) -> tensor<1x1x1x1xi1>
      %5 = stablehlo.iota dim = 0 : tensor<1x1xi32>
      %6 = stablehlo.iota dim = 1 : tensor<1x1xi32>
      %c = stablehlo.constant dense<0> : tensor<i32>
      %7 = stablehlo.broadcast_in_dim %c, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
      %8 = stablehlo.add %5, %7 : tensor<1x1xi32>
      %9 = stablehlo.compare EQ, %8, %6, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
      %10 = stablehlo.broadcast_in_dim %9, dims = [0, 2] : (tensor<1x1xi1>) -> tensor<1x1x1x1x1xi1>
      %11 = stablehlo.broadcast_in_dim %4, dims = [1, 2, 3, 4] : (tensor<1x1x1x1xi1>) -> tensor<1x1x1x1x1xi1>
      %12 = stablehlo.and %10, %11 : tensor<1x1x1x1x1xi1>
      %13 = stablehlo.convert %12 : (tensor<1x1x1x1x1xi1>) -> tensor<1x1x1x1x1xui8>
      %14 = stablehlo.reshape %13 : (tensor<1x1x1x1x1xui8>) -> tensor<1x1xui8>
      %c_0 = stablehlo.constant dense<0> : tensor<i32>
      %15 = stablehlo.broadcast_in_dim %c_0, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
      %16 = stablehlo.compare GE, %arg45, %15, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
      %c_1 = stablehlo.constant dense<8> : tensor<i32>
      %17 = stablehlo.broadcast_in_dim %c_1, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
      %18 = stablehlo.compare LT, %arg45, %17, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
      %19 = stablehlo.and %16, %18 : tensor<1x1xi1>
      %c_2 = stablehlo.constant dense<8> : tensor<i32>
      %20 = func.call @_where(%19, %arg45, %c_2) : (tensor<1x1xi1>, tensor<1x1xi32>, tensor<i32>) -> tensor<1x1xi32>
      %21 = stablehlo.broadcast_in_dim %20, dims = [0, 1] : (tensor<1x1xi32>) -> tensor<1x1x1xi32>
      %22 = stablehlo.broadcast_in_dim %20, dims = [0, 2] : (tensor<1x1xi32>) -> tensor<1x1x1xi32>
      %23 = stablehlo.compare EQ, %21, %22, SIGNED : (tensor<1x1x1xi32>, tensor<1x1x1xi32>) -> tensor<1x1x1xi1>
      %24 = func.call @triu(%23) : (tensor<1x1x1xi1>) -> tensor<1x1x1xi1>
      %c_3 = stablehlo.constant dense<false> : tensor<i1>
      %25 = stablehlo.reduce(%24 init: %c_3) applies stablehlo.or across dimensions = [2] : (tensor<1x1x1xi1>, tensor<i1>) -> tensor<1x1xi1>
      %26 = stablehlo.iota dim = 0 : tensor<1xi32>
      %27 = stablehlo.broadcast_in_dim %26, dims = [0] : (tensor<1xi32>) -> tensor<1x1xi32>
      %c_4 = stablehlo.constant dense<8> : tensor<i32>
      %28 = stablehlo.broadcast_in_dim %c_4, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
      %29 = stablehlo.compare LT, %20, %28, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
      %30 = stablehlo.not %25 : tensor<1x1xi1>
      %31 = stablehlo.and %29, %30 : tensor<1x1xi1>
      %32 = stablehlo.iota dim = 0 : tensor<1xui32>
      %33 = stablehlo.broadcast_in_dim %32, dims = [0] : (tensor<1xui32>) -> tensor<1x1x1xui32>
      %c_5 = stablehlo.constant dense<1> : tensor<ui32>
      %34 = stablehlo.broadcast_in_dim %c_5, dims = [] : (tensor<ui32>) -> tensor<1x1x1xui32>
      %35 = stablehlo.multiply %33, %34 : tensor<1x1x1xui32>
      %36 = stablehlo.convert %27 : (tensor<1x1xi32>) -> tensor<1x1xui32>
      %37 = stablehlo.broadcast_in_dim %36, dims = [1, 2] : (tensor<1x1xui32>) -> tensor<1x1x1xui32>
      %38 = stablehlo.add %35, %37 : tensor<1x1x1xui32>
      %c_6 = stablehlo.constant dense<1> : tensor<ui32>
      %39 = stablehlo.broadcast_in_dim %c_6, dims = [] : (tensor<ui32>) -> tensor<1x1x1xui32>
      %40 = stablehlo.multiply %38, %39 : tensor<1x1x1xui32>
      %41 = stablehlo.convert %20 : (tensor<1x1xi32>) -> tensor<1x1xui32>
      %42 = stablehlo.broadcast_in_dim %41, dims = [1, 2] : (tensor<1x1xui32>) -> tensor<1x1x1xui32>
      %c_7 = stablehlo.constant dense<512> : tensor<ui32>
      %43 = stablehlo.broadcast_in_dim %c_7, dims = [] : (tensor<ui32>) -> tensor<1x1x1xui32>
      %44 = stablehlo.multiply %40, %43 : tensor<1x1x1xui32>
      %45 = stablehlo.add %44, %42 : tensor<1x1x1xui32>
      %c_8 = stablehlo.constant dense<8> : tensor<ui32>
      %46 = stablehlo.broadcast_in_dim %c_8, dims = [] : (tensor<ui32>) -> tensor<1x1x1xui32>
      %47 = stablehlo.multiply %40, %46 : tensor<1x1x1xui32>
      %48 = stablehlo.add %47, %42 : tensor<1x1x1xui32>
      %c_9 = stablehlo.constant dense<false> : tensor<i1>
      %49 = stablehlo.broadcast_in_dim %c_9, dims = [] : (tensor<i1>) -> tensor<1x1xi1>
      %c_10 = stablehlo.constant dense<true> : tensor<i1>
      %50 = stablehlo.reduce(%31 init: %c_10) applies stablehlo.and across dimensions = [1] : (tensor<1x1xi1>, tensor<i1>) -> tensor<1xi1>
      %51 = stablehlo.broadcast_in_dim %50, dims = [0] : (tensor<1xi1>) -> tensor<1x1xi1>
      %52 = stablehlo.broadcast_in_dim %51, dims = [1, 2] : (tensor<1x1xi1>) -> tensor<1x1x1xi1>
      %c_11 = stablehlo.constant dense<4294967295> : tensor<ui32>
      %53 = func.call @_where_0(%52, %45, %c_11) : (tensor<1x1x1xi1>, tensor<1x1x1xui32>, tensor<ui32>) -> tensor<1x1x1xui32>
      %54 = stablehlo.reshape %53 : (tensor<1x1x1xui32>) -> tensor<1x1xui32>
      %55 = stablehlo.broadcast_in_dim %31, dims = [1, 2] : (tensor<1x1xi1>) -> tensor<1x1x1xi1>
      %c_12 = stablehlo.constant dense<4294967295> : tensor<ui32>
      %56 = func.call @_where_0(%55, %48, %c_12) : (tensor<1x1x1xi1>, tensor<1x1x1xui32>, tensor<ui32>) -> tensor<1x1x1xui32>
      %57 = stablehlo.reshape %56 : (tensor<1x1x1xui32>) -> tensor<1x1xui32>
      %58:5 = stablehlo.custom_call @AwsNeuronCustomNativeKernel(%arg43, %arg39, %arg40, %arg37, %arg38, %arg35, %arg36, %arg41, %arg42, %arg29, %arg30, %arg33, %arg34, %arg31, %arg32, %arg23, %arg24, %arg27, %arg28, %arg25, %arg26, %3, %14, %54, %57) {api_version = 2 : i32, backend_config = "eyJmdW5jX25hbWUiOiAidHJhbnNmb3JtZXJfdGtnX2VudHJ5IiwgInBsYXRmb3JtX3RhcmdldCI6IDMsICJrZXJuZWxfZm9ybWF0IjogImJpciIsICJrZXJuZWxfdmVyc2lvbiI6IDEsICJrbGlyX2JpbmFyeSI6IHsiYmluYXJ5IjogIiIsICJpbnB1dF9uYW1lcyI6IFsiWCIsICJXX3FrdnNfMCIsICJXX3FrdnNfMSIsICJXX291dHNfMCIsICJXX291dHNfMSIsICJXX2dhdGVzXzAiLCAiV19nYXRlc18xIiwgIldfdXBzXzAiLCAiV191cHNfMSIsICJXX2Rvd25zXzAiLCAiV19kb3duc18xIiwgIldfZ2FtbWFfcWt2c18wIiwgIldfZ2FtbWFfcWt2c18xIiwgIldfZ2FtbWFfbWxwc18wIiwgIldfZ2FtbWFfbWxwc18xIiwgIktfY2FjaGVzXzAubXVzdF9hbGlhc19pbnB1dCIsICJLX2NhY2hlc18xLm11c3RfYWxpYXNfaW5wdXQiLCAiVl9jYWNoZXNfMC5tdXN0X2FsaWFzX2lucHV0IiwgIlZfY2FjaGVzXzEubXVzdF9hbGlhc19pbnB1dCIsICJSb1BFX2NvcyIsICJSb1BFX3NpbiIsICJwcmlvcl9tYXNrIiwgImFjdGl2ZV9tYXNrIiwgIndpbmRvd19vZmZzZXRzIiwgInZhbHVlX29mZnNldHMiXSwgIm91dHB1dF9uYW1lcyI6IFsiaGlkZGVuIiwgIktfY2FjaGVzXzAiLCAiS19jYWNoZXNfMSIsICJWX2NhY2hlc18wIiwgIlZfY2FjaGVzXzEiXSwgInZlcnNpb25faWRlbnRpZmllciI6ICIiLCAiYWxpYXNlcyI6IFtbMTUsIDFdLCBbMTYsIDJdLCBbMTcsIDNdLCBbMTgsIDRdXX0sICJncmlkIjogMiwgImhhc19jb2xsZWN0aXZlcyI6IHRydWUsICJtYWNfY291bnQiOiAxNjU4ODgsICJyZXBsaWNhX2dyb3VwcyI6IFtbMCwgMSwgMiwgM11dLCAibnVtX2xheWVycyI6IDJ9", operand_layouts = [dense<[2, 1, 0]> : tensor<3xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[2, 1, 0]> : tensor<3xindex>, dense<[2, 1, 0]> : tensor<3xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>], output_operand_aliases = [#stablehlo.output_operand_alias<output_tuple_indices = [1], operand_index = 15, operand_tuple_indices = []>, #stablehlo.output_operand_alias<output_tuple_indices = [2], operand_index = 16, operand_tuple_indices = []>, #stablehlo.output_operand_alias<output_tuple_indices = [3], operand_index = 17, operand_tuple_indices = []>, #stablehlo.output_operand_alias<output_tuple_indices = [4], operand_index = 18, operand_tuple_indices = []>], result_layouts = [dense<[2, 1, 0]> : tensor<3xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>]} : (tensor<1x1x128xf32>, tensor<128x192xf32>, tensor<128x192xf32>, tensor<64x128xf32>, tensor<64x128xf32>, tensor<128x128xf32>, tensor<128x128xf32>, tensor<128x128xf32>, tensor<128x128xf32>, tensor<128x128xf32>, tensor<128x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x1x64x8xf32>, tensor<1x1x64x8xf32>, tensor<1x1x8x64xf32>, tensor<1x1x8x64xf32>, tensor<32x1x1xf32>, tensor<32x1x1xf32>, tensor<7x1xui8>, tensor<1x1xui8>, tensor<1x1xui32>, tensor<1x1xui32>) -> (tensor<1x1x128xf32>, tensor<1x1x64x8xf32>, tensor<1x1x64x8xf32>, tensor<1x1x8x64xf32>, tensor<1x1x8x64xf32>)
      sdy.return %58#0, %58#1, %58#2, %58#3, %58#4 : tensor<1x1x128xf32>, tensor<1x1x64x8xf32>, tensor<1x1x64x8xf32>, tensor<1x1x8x64xf32>, tensor<1x1x8x64xf32>
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
  func.func private @_where_0(%arg0: tensor<1x1x1xi1>, %arg1: tensor<1x1x1xui32>, %arg2: tensor<ui32>) -> tensor<1x1x1xui32> {
    %0 = stablehlo.broadcast_in_dim %arg2, dims = [] : (tensor<ui32>) -> tensor<1x1x1xui32>
    %1 = stablehlo.select %arg0, %arg1, %0 : tensor<1x1x1xi1>, tensor<1x1x1xui32>
    return %1 : tensor<1x1x1xui32>
  }
}

// backend_config:
// {
//   "func_name": "transformer_tkg_entry",
//   "grid": 2,
//   "has_collectives": true,
//   "kernel_format": "bir",
//   "kernel_version": 1,
//   "klir_binary": {
//     "aliases": [
//       [
//         15,
//         1
//       ],
//       [
//         16,
//         2
//       ],
//       [
//         17,
//         3
//       ],
//       [
//         18,
//         4
//       ]
//     ],
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
//       "K_caches_0.must_alias_input",
//       "K_caches_1.must_alias_input",
//       "V_caches_0.must_alias_input",
//       "V_caches_1.must_alias_input",
//       "RoPE_cos",
//       "RoPE_sin",
//       "prior_mask",
//       "active_mask",
//       "window_offsets",
//       "value_offsets"
//     ],
//     "output_names": [
//       "hidden",
//       "K_caches_0",
//       "K_caches_1",
//       "V_caches_0",
//       "V_caches_1"
//     ],
//     "version_identifier": ""
//   },
//   "mac_count": 165888,
//   "num_layers": 2,
//   "platform_target": 3,
//   "replica_groups": [
//     [
//       0,
//       1,
//       2,
//       3
//     ]
//   ]
// }
